//! Tests of commands about running pods, and about the rules as a whole.

use crate::{BASE, GRANT, PODS, RESTRICTED, RULES, json, run};

#[test]
fn a_change_tells_whom_it_cuts_off() {
    let files = [
        ("now.yaml", &*format!("{RULES}{PODS}")),
        ("new/grant.yaml", GRANT),
    ];
    let arguments = [
        "simulate", "--rules", "new", "-f", "now.yaml", "-o", "json", BASE, RESTRICTED,
    ];
    let ran = run(&files, &arguments, "");
    assert_eq!(ran.code, 3, "{}", ran.err);
    let printed = json(&ran);
    assert_eq!(printed["pods"], 2);
    assert_eq!(printed["unchanged"], 1);
    assert_eq!(printed["newlyDenied"][0]["pods"][0], "front-0");
}

#[test]
fn the_suggestion_is_the_step_to_default_deny() {
    let now = format!("{RULES}{PODS}");
    let files = [("now.yaml", now.as_str())];
    let suggested = run(&files, &["suggest", "-f", "now.yaml", BASE], "");
    assert_eq!(suggested.code, 0, "{}", suggested.err);
    assert!(suggested.out.contains("- customer-a"), "{}", suggested.out);
    let config = GRANT.split_once("---\n").unwrap().1;
    let new = format!("{}---\n{config}", suggested.out);
    let files = [("now.yaml", now.as_str()), ("new.yaml", new.as_str())];
    let arguments = [
        "simulate", "--rules", "new.yaml", "-f", "now.yaml", BASE, RESTRICTED,
    ];
    let ran = run(&files, &arguments, "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.starts_with("nothing changes"), "{}", ran.out);
}

#[test]
fn web_identity_is_suggested_and_simulated_as_the_gate_judges_it() {
    let users = "\
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: front
  namespace: web
  annotations: {eks.amazonaws.com/role-arn: 'arn:aws:iam::123456789012:role/web-front'}
---
apiVersion: v1
kind: Pod
metadata: {name: irsa-0, namespace: shop, uid: u1}
spec:
  serviceAccountName: irsa
  nodeName: node-a
  containers: [{name: app, image: app, env: [{name: AWS_ROLE_ARN, value: shop-irsa}]}]
status: {phase: Running}
";
    let now = format!("{RULES}{users}");
    let config = GRANT.split_once("---\n").unwrap().1;
    let files = [("now.yaml", now.as_str()), ("new.yaml", config)];
    let simulate = [
        "simulate", "--rules", "new.yaml", "-f", "now.yaml", BASE, RESTRICTED,
    ];
    let ran = run(&files, &simulate, "");
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert!(
        ran.out
            .contains("refused by the webhook when re-created: 1 pod"),
        "{}",
        ran.out
    );
    let suggested = run(&files, &["suggest", "-f", "now.yaml", BASE], "");
    for part in ["- shop-irsa", "- web-front", "- front"] {
        assert!(suggested.out.contains(part), "{part}: {}", suggested.out);
    }
    let new = format!("{}---\n{config}", suggested.out);
    let files = [("now.yaml", now.as_str()), ("new.yaml", new.as_str())];
    let ran = run(&files, &simulate, "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let explain = [
        "explain",
        "pod/irsa-0",
        "-n",
        "shop",
        "--rules",
        "now.yaml",
        BASE,
        RESTRICTED,
    ];
    let ran = run(&files, &explain, "");
    assert!(
        ran.out.contains("shop-irsa   allowed"),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn what_counts_for_nothing_is_told_by_every_command() {
    let broken = "\
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: {name: everyone}
spec: {roles: [reader], subjects: [{}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: typo, namespace: opa, labels: {openpolicyagent.org/policy: rego}}
data: {a.rego: 'package kubernetes.admission deny['}
";
    let now = format!("{RULES}{PODS}---\n{broken}");
    let on = "--layer=grants=enforce,rego=enforce";
    let files = [("now.yaml", now.as_str())];
    for arguments in [
        &["suggest", "-f", "now.yaml", BASE][..],
        &["convert", "-f", "now.yaml", BASE],
        &[
            "simulate", "--rules", "now.yaml", "-f", "now.yaml", BASE, on,
        ],
        &["check", "--rules", "now.yaml", "-f", "now.yaml", BASE, on],
        &[
            "explain",
            "--role=reader",
            "-n=shop",
            "--rules",
            "now.yaml",
            BASE,
            on,
        ],
        &["export", "--format=webhook", "--rules", "now.yaml", BASE],
    ] {
        let ran = run(&files, arguments, "");
        for part in [
            "RoleGrant everyone grants nothing",
            "ConfigMap opa/typo cannot be used",
        ] {
            assert!(ran.err.contains(part), "{arguments:?}: {}", ran.err);
        }
    }
}

#[test]
fn a_policy_of_the_gate_is_simulated() {
    let policy = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: teams, namespace: opa, labels: {openpolicyagent.org/policy: rego}}
data:
  a.rego: |
    package kubernetes.admission
    deny[msg] {
      not input.request.object.metadata.labels.team
      input.request.object.spec.containers[_].image == \"app\"
      msg := \"no team\"
    }
---
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: {name: cluster}
spec: {layers: {namespace: enforce, rego: enforce}}
";
    let now = format!("{RULES}{PODS}");
    let files = [("now.yaml", now.as_str()), ("new.yaml", policy)];
    let arguments = [
        "simulate",
        "--rules=new.yaml",
        "-f=now.yaml",
        "-ojson",
        BASE,
        RESTRICTED,
    ];
    let ran = run(&files, &arguments, "");
    assert_eq!(ran.code, 3, "{}", ran.err);
    let printed = json(&ran);
    assert_eq!(printed["newlyDenied"], serde_json::json!([]));
    assert_eq!(
        printed["deniedOnRecreate"][0]["reason"],
        "denied by rego: no team"
    );
    assert!(ran.err.contains("evaluated for pods only"), "{}", ran.err);
}

#[test]
fn the_session_told_is_that_of_agents_with_the_same_flags() {
    let now = format!("{RULES}{PODS}");
    let files = [("now.yaml", now.as_str())];
    let explain = |flags: &[&str]| {
        let mut arguments = vec!["explain", "pod/api-0", "-n=shop", "--rules=now.yaml", BASE];
        arguments.extend(["-ojson", RESTRICTED].iter().chain(flags));
        let ran = run(&files, &arguments, "");
        assert_eq!(ran.code, 0, "{}", ran.err);
        let session = json(&ran)["session"].clone();
        format!("{} {}", session["sessionName"], session["durationSeconds"])
    };
    assert_eq!(explain(&[]), r#""shop.api" 3600"#);
    let flags = ["--session-scope=pod", "--session-duration=2h"];
    assert_eq!(explain(&flags), r#""shop.api-0" 7200"#);
    assert_eq!(explain(&["--session-scope=role"]), r#""rolegate" 3600"#);
}

#[test]
fn what_makes_pods_is_explained_by_its_template() {
    let deployment = "\
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  template:
    metadata: {annotations: {iam.amazonaws.com/role: reader}}
    spec: {serviceAccountName: api, containers: [{name: app, image: app}]}
";
    let cron = "\
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {annotations: {iam.amazonaws.com/role: admin}}, spec: {}}}}}
";
    let rules = format!("{RULES}{deployment}{cron}");
    let explain = |what: &str| {
        let arguments = [
            "explain", what, "-n", "shop", "--rules", "r.yaml", "-o", "json", BASE, RESTRICTED,
        ];
        run(&[("r.yaml", &rules)], &arguments, "")
    };
    let ran = explain("deployment/api");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let printed = json(&ran);
    assert_eq!(printed["decision"], "allowed");
    assert_eq!(printed["workload"]["serviceAccount"], "api");
    assert_eq!(explain("deploy/api").code, 0);
    assert_eq!(explain("cj/nightly").code, 3);
}
