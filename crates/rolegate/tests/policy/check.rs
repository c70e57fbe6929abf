//! Tests of `rolegate policy check`: which parts are validated, and the report.

use serde_json::Value;

use crate::{BASE, RESTRICTED, RULES, Ran, json, run};

const POLICY: &str = "\
package kubernetes.admission

deny[msg] {
	input.request.object.metadata.labels.tier == \"bad\"
	msg := \"no such tier\"
}
";

fn pod(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n{rest}\
         spec:\n  containers: [{{name: app, image: app}}]\n"
    )
}

/// Runs `check` with the rules in `rules.yaml` on `input`, with more arguments.
fn check(more: &[&str], input: &str) -> Ran {
    check_files(&[], more, input)
}

fn check_files(files: &[(&str, &str)], more: &[&str], input: &str) -> Ran {
    let mut all = vec![("rules.yaml", RULES)];
    all.extend_from_slice(files);
    let mut arguments = vec!["check", "-f", "-", "--rules", "rules.yaml", BASE];
    // Without a configuration, flags set the layers' modes. They have no effect with one.
    if !files
        .iter()
        .any(|(_, text)| text.contains("RolegateConfig"))
    {
        arguments.push(RESTRICTED);
    }
    arguments.extend_from_slice(more);
    run(&all, &arguments, input)
}

/// Returns each finding as `level line name rule`.
fn printed(ran: &Ran) -> Vec<String> {
    let report = json(ran);
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    findings
        .map(|one| {
            let [level, name, rule] = ["level", "name", "rule"].map(|field| text(one, field));
            format!("{level} {} {name} {rule}", one["line"])
        })
        .collect()
}

#[test]
fn nothing_to_judge_is_an_error_wherever_it_comes_from() {
    let list = "apiVersion: v1\nkind: List\nitems: []\n";
    for input in ["", "\n", "---\n---\n", "# rendered nothing\n", list] {
        let ran = check(&[], input);
        assert_eq!(ran.code, 1, "{input:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("contains no object"), "{}", ran.err);
        assert_eq!(ran.out, "", "{input:?}");
    }
    let fine = pod("a", "");
    let files = [
        ("full.yaml", &*fine),
        ("empty.yaml", ""),
        ("values/values.yaml", "a: b\n"),
    ];
    for paths in [
        &["-f", "full.yaml", "-f", "empty.yaml"][..],
        &["-f", "full.yaml", "-f", "values"],
        &["-f", "full.yaml", "--ignore", "full.yaml"],
    ] {
        let mut arguments = vec!["check", "--rules", "rules.yaml", BASE, RESTRICTED];
        arguments.extend_from_slice(paths);
        let mut all = vec![("rules.yaml", RULES)];
        all.extend_from_slice(&files);
        let ran = run(&all, &arguments, "");
        assert_eq!(ran.code, 1, "{paths:?}: {}{}", ran.out, ran.err);
    }
    // Empty rules of a failed command are an error too.
    let files = [("full.yaml", &*fine), ("empty.yaml", "")];
    for command in [
        &["check", "-f", "full.yaml", "--rules", "empty.yaml"][..],
        &["simulate", "-f", "full.yaml", "--rules", "empty.yaml"],
        &["suggest", "-f", "empty.yaml"],
    ] {
        let ran = run(&files, command, "");
        assert_eq!(ran.code, 1, "{command:?}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn items_of_any_kind_are_judged() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "shop",
        "annotations": {"iam.amazonaws.com/role": "admin"}}, "spec": {"containers": []}}"#;
    for kind in ["ConfigMap", "List", "PodList", "Anything"] {
        let text = format!(r#"{{"apiVersion": "v1", "kind": "{kind}", "items": [{pod}]}}"#);
        let ran = check(&["-o", "json"], &text);
        assert_eq!(ran.code, 3, "{kind}: {}{}", ran.out, ran.err);
        assert_eq!(json(&ran)["findings"][0]["name"], "x", "{kind}");
    }
}

#[test]
fn null_and_empty_are_as_for_the_api_server() {
    let declines = pod("a", "  annotations:\n    iam.amazonaws.com/role:\n");
    let ran = check(&[], &declines);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    for namespace in ["''", "null", ""] {
        let pod = declines.replace("namespace: shop", &format!("namespace: {namespace}"));
        let ran = check(&["-n", "web"], &pod);
        assert_eq!(ran.code, 0, "{namespace}: {}{}", ran.out, ran.err);
        assert!(!ran.err.contains("namespace  "), "{}", ran.err);
        let asks = pod.replace("role:\n", "role: admin\n");
        let ran = check(&["-n", "web"], &asks);
        assert!(ran.out.contains("refused Pod web/a"), "{}", ran.out);
    }
}

#[test]
fn what_is_not_judged_or_has_no_effect_is_a_warning() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: owner
  namespace: shop
  annotations:
    iam.amazonaws.com/role: reader
spec:
  template:
    spec: {containers: [{name: app, image: app}]}
---
apiVersion: apps.openshift.io/v1
kind: DeploymentConfig
metadata: {name: config, namespace: shop}
spec:
  template:
    spec: {containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: pod
metadata: {name: small, namespace: shop}
spec: {containers: [{name: app, image: app}]}
---
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: old, namespace: shop}
spec: {template: {spec: {containers: [{name: app, image: app}]}}}
---
apiVersion: templates.gatekeeper.sh/v1
kind: ConstraintTemplate
metadata: {name: k8srequired}
";
    let ran = check(&["-o", "json"], text);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        printed(&ran),
        [
            "warning 7 owner no effect",
            "warning 17 config not validated",
            "warning 20 small not validated",
            "warning 24 old not validated",
            "note 29 k8srequired not validated",
        ]
    );
    assert_eq!(json(&ran)["warnings"], 4);
    let ran = check(&["--fail-on-warning"], text);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("none would be denied, 4 warnings"),
        "{}",
        ran.out
    );
    let ran = check(&["-o", "github"], text);
    assert_eq!(ran.out.matches("::warning ").count(), 4, "{}", ran.out);
    assert_eq!(ran.out.matches("::notice ").count(), 1, "{}", ran.out);
}

#[test]
fn the_summary_of_a_layer_in_audit_mode_says_what_the_line_says() {
    let config = "\
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: {name: cluster}
spec: {layers: {namespace: audit}}
";
    let asks = pod("a", "  annotations: {iam.amazonaws.com/role: admin}\n");
    let files = [("config.yaml", config)];
    let ran = check_files(&files, &["--rules", "config.yaml"], &asks);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let first = ran.out.lines().next().unwrap();
    assert!(first.contains(": warning Pod shop/a: "), "{}", ran.out);
    assert!(
        ran.out
            .contains("\n1 object checked, none would be denied, 1 warning\n"),
        "{}",
        ran.out
    );
    let strict = ["--rules", "config.yaml", "--fail-on-warning", "-o", "junit"];
    let ran = check_files(&files, &strict, &asks);
    assert_eq!(ran.code, 3);
    assert!(ran.out.contains(r#"tests="1" failures="1""#), "{}", ran.out);
}

#[test]
fn reviews_are_judged_as_they_are() {
    let review = |operation: &str, object: &str, old: &str| {
        format!(
            "{{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": \"AdmissionReview\",\n\"request\": \
             {{\"uid\": \"u\", \"kind\": {{\"group\": \"\", \"version\": \"v1\", \"kind\": \"Pod\"}}, \
             \"namespace\": \"shop\", \"name\": \"x\", \"operation\": \"{operation}\",\n\
             \"userInfo\": {{\"username\": \"ann\"}},\n\"object\": {object},\n\"oldObject\": {old}}}}}"
        )
    };
    let asks = r#"{"metadata": {"name": "x", "annotations": {"iam.amazonaws.com/role": "admin"}}}"#;
    let ran = check(&["-o", "json"], &review("CREATE", asks, "null"));
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert_eq!(json(&ran)["findings"][0]["line"], 4);
    // Existing roles are not validated again, and deletions never are.
    assert_eq!(check(&[], &review("UPDATE", asks, asks)).code, 0);
    assert_eq!(check(&[], &review("UPDATE", asks, "{}")).code, 3);
    assert_eq!(check(&[], &review("DELETE", "null", asks)).code, 0);
    let answer =
        r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {}}"#;
    assert_eq!(check(&[], answer).code, 3);
    let policy = "package kubernetes.admission\n\ndeny[msg] {\n  \
                  input.request.userInfo.username == \"ann\"\n  msg := \"not ann\"\n}\n";
    let files = [("who.rego", policy)];
    let more = ["--rules", "who.rego", "--layer=rego=enforce", "-o", "json"];
    let ran = check_files(&files, &more, &review("CREATE", "{}", "null"));
    assert_eq!(
        json(&ran)["findings"][0]["message"],
        "not ann",
        "{}",
        ran.err
    );
}

#[test]
fn updates_deletions_and_users_can_be_tried() {
    let policy = "\
package kubernetes.admission

deny[msg] {
  input.request.oldObject.metadata.labels.tier != input.request.object.metadata.labels.tier
  not is_admin
  msg := sprintf(\"%v may not change the tier\", [input.request.userInfo.username])
}

is_admin { input.request.userInfo.groups[_] == \"admins\" }
";
    let tier = |tier: &str| pod("a", &format!("  labels: {{tier: {tier}}}\n"));
    let (now, other) = (tier("front"), pod("b", "  labels: {tier: x}\n"));
    let files = [("tier.rego", policy), ("now.yaml", &*now)];
    let rules = ["--rules", "tier.rego", "--layer=rego=enforce"];
    let ran = |more: &[&str], input: &str| check_files(&files, &[&rules, more].concat(), input);
    let old = ["--old", "now.yaml", "--user", "ann"];
    let changed = ran(&old, &tier("back"));
    assert_eq!(changed.code, 3, "{}{}", changed.out, changed.err);
    assert!(
        changed.out.contains("ann may not change the tier"),
        "{}",
        changed.out
    );
    assert_eq!(ran(&old, &now).code, 0);
    assert_eq!(
        ran(&[], &tier("back")).code,
        0,
        "a creation has no old object"
    );
    let admins = [&old[..], &["--group", "admins"]].concat();
    assert_eq!(ran(&admins, &tier("back")).code, 0);
    let both = ran(&old, &format!("{now}{other}"));
    assert_eq!(both.code, 0);
    assert!(
        both.err.contains("1 objects are not in --old"),
        "{}",
        both.err
    );
    let update = [&old[..], &["--operation", "update"]].concat();
    assert_eq!(ran(&update, &now).code, 0);
    assert_eq!(ran(&update, &other).code, 1);
    assert_eq!(ran(&["--operation", "update"], &now).code, 64);
    assert_eq!(
        ran(&["--operation", "delete", "--old", "now.yaml"], &now).code,
        64
    );
    // Admission validates deletions of rules only.
    let grant = "apiVersion: rolegate.dev/v1alpha1\nkind: RoleGrant\nmetadata: {name: x}\n\
                 spec: {roles: [a], subjects: [{namespaces: [shop]}]}\n";
    let config = "apiVersion: rolegate.dev/v1alpha1\nkind: RolegateConfig\n\
                  metadata: {name: cluster}\nspec: {ruleWriters: {groups: [platform]}}\n";
    let files = [("config.yaml", config)];
    let delete = ["--rules", "config.yaml", "--operation", "delete"];
    let deleted = check_files(&files, &delete, grant);
    assert_eq!(deleted.code, 3, "{}{}", deleted.out, deleted.err);
    assert!(deleted.out.contains("may delete it"), "{}", deleted.out);
    let writer = [&delete[..], &["--group", "platform"]].concat();
    assert_eq!(check_files(&files, &writer, grant).code, 0);
}

#[test]
fn rules_are_files_and_folders_of_rego_too() {
    let tests = "package kubernetes.admission_test\n\ntest_x { no.such.function(1) }\n";
    let broken = "package kubernetes.admission\n\ndeny[msg] {\n\tmsg :=\n}\n";
    let files = [
        ("policies/a/tier.rego", POLICY),
        ("policies/a/tier_test.rego", tests),
        ("policies/readme.md", "x"),
        ("broken.rego", broken),
        (
            "gatekeeper.rego",
            "package k8s\n\nviolation[{\"msg\": \"x\"}] { input.x }\n",
        ),
    ];
    let bad = pod("a", "  labels: {tier: bad}\n");
    let rules = |rules: &str, input: &str| {
        run(
            &files,
            &[
                "check",
                "-f",
                "-",
                "-o",
                "json",
                BASE,
                "--layer=rego=enforce",
                "--rules",
                rules,
            ],
            input,
        )
    };
    for path in ["policies", "policies/a/tier.rego"] {
        let ran = rules(path, &bad);
        assert_eq!(ran.code, 3, "{path}: {}{}", ran.out, ran.err);
        assert_eq!(
            printed(&ran),
            ["error 2 a policies/a/tier.rego"],
            "{}",
            ran.err
        );
        assert_eq!(rules(path, &pod("a", "")).code, 0);
    }
    let ran = rules("broken.rego", &bad);
    assert_eq!(ran.code, 3);
    assert!(
        ran.err
            .contains("note: broken.rego:3: the policy cannot be used: "),
        "{}",
        ran.err
    );
    let ran = rules("gatekeeper.rego", &bad);
    assert_eq!(ran.code, 0);
    let notes = json(&ran)["notes"].to_string();
    assert!(
        notes.contains("gatekeeper.rego: no rule of it is ever evaluated")
            && notes.contains("Gatekeeper's"),
        "{notes}"
    );
    // A policy is not a manifest.
    let ran = run(
        &files,
        &["check", "-f", "broken.rego", "--rules", "policies"],
        "",
    );
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("use --rules"), "{}", ran.err);
}

#[test]
fn config_maps_of_which_nothing_is_asked_are_told_with_their_line() {
    let map = |change: (&str, &str)| {
        let text = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: tiers, namespace: opa, labels: {openpolicyagent.org/policy: rego}}
data:
  tiers.rego: |
    package kubernetes.admission
    deny[msg] { input.request.object.metadata.labels.tier == \"bad\"; msg := \"no such tier\" }
";
        assert!(text.contains(change.0), "{change:?}");
        format!("---\n{}", text.replace(change.0, change.1))
    };
    for (change, part) in [
        (
            ("namespace: opa", "namespace: shop"),
            "read from namespaces opa",
        ),
        (
            (", labels: {openpolicyagent.org/policy: rego}", ""),
            "does not have label",
        ),
        (("deny[", "violation["), "are Gatekeeper's"),
        (("kubernetes.admission", "main"), "its package is main"),
        (("\ndata:", "\nbinaryData:"), "to data"),
    ] {
        let mut policy = map(change);
        if change.1 == "\nbinaryData:" {
            policy = policy.split("    package").next().unwrap().to_owned() + "    eA==\n";
        }
        let files = [("maps.yaml", &*policy)];
        let more = ["--rules", "maps.yaml", "--layer=rego=enforce"];
        let ran = check_files(&files, &more, &pod("a", "  labels: {tier: bad}\n"));
        assert_eq!(ran.code, 0, "{part}: {}{}", ran.out, ran.err);
        let line = "note: maps.yaml:2: ConfigMap ";
        assert!(
            ran.err.contains(line) && ran.err.contains(part),
            "{part}: {}",
            ran.err
        );
    }
    let whole = map(("tiers.rego", "tiers.rego"));
    let files = [("maps.yaml", &*whole)];
    let more = ["--rules", "maps.yaml", "--layer=rego=enforce"];
    let ran = check_files(&files, &more, &pod("a", ""));
    assert!(!ran.err.contains("ConfigMap"), "{}", ran.err);
    // A namespace that only contains policies is not mentioned.
    assert!(!ran.err.contains("namespace opa"), "{}", ran.err);
    let broken = whole.replace("deny[msg]", "deny[msg");
    let files = [("maps.yaml", &*broken)];
    let ran = check_files(&files, &more, &pod("a", ""));
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(
        ran.err.contains(
            "note: maps.yaml:2: ConfigMap opa/tiers cannot be used: tiers.rego, line 2: "
        ),
        "{}",
        ran.err
    );
}

#[test]
fn a_folder_may_hold_what_is_no_object() {
    let fine = pod("a", "");
    let mut files = vec![
        ("rules.yaml", RULES),
        ("chart/pod.yaml", &*fine),
        ("chart/values.yaml", "replicas: 1\n"),
        (
            "chart/Chart.yaml",
            "apiVersion: v2\nname: shop\nversion: 1.0.0\n",
        ),
        (
            "chart/docker-compose.yaml",
            "services: {web: {image: web}}\n",
        ),
    ];
    let folder = [
        "check",
        "-f",
        "chart",
        "--rules",
        "rules.yaml",
        BASE,
        RESTRICTED,
    ];
    let ran = run(&files, &folder, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    for file in ["values.yaml:1", "Chart.yaml:1", "docker-compose.yaml:1"] {
        assert!(
            ran.err
                .contains(&format!("chart/{file} is not a Kubernetes object")),
            "{}",
            ran.err
        );
    }
    let ran = run(&files, &[&folder[..], &["--quiet"]].concat(), "");
    assert_eq!((ran.code, &*ran.out, &*ran.err), (0, "", ""));
    // A file that is named explicitly must contain objects.
    let ran = run(
        &files,
        &["check", "-f", "chart/values.yaml", "--rules", "rules.yaml"],
        "",
    );
    assert_eq!(ran.code, 1);
    // Half an object is an error, and a template must be rendered first.
    files.push((
        "chart/templates/a.yaml",
        "kind: Pod\nmetadata: {name: {{ .Release.Name }}}\n",
    ));
    let ran = run(&files, &folder, "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("chart/templates/a.yaml:2: it is an unrendered template")
            && ran.err.contains("helm template"),
        "{}",
        ran.err
    );
    let ran = run(
        &files,
        &[&folder[..], &["--ignore", "templates"]].concat(),
        "",
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    files.push(("chart/half.yaml", "kind: Pod\nmetadata: {name: x}\n"));
    let ignored = [&folder[..], &["--ignore", "chart/templates/*.yaml"]].concat();
    assert_eq!(run(&files, &ignored, "").code, 1);
}

#[test]
fn reports_are_junit_and_tap_too() {
    let text = format!(
        "{}{}",
        pod("fine", ""),
        pod(
            "<admin>",
            "  annotations: {iam.amazonaws.com/role: admin}\n"
        )
    );
    let ran = check(&["-o", "tap"], &text);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out.starts_with(
            "TAP version 13\n1..2\nok 1 - Pod shop/fine\nnot ok 2 - Pod shop/<admin>\n# -:"
        ),
        "{}",
        ran.out
    );
    let ran = check(&["-o", "junit"], &text);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out
            .contains(r#"tests="2" failures="1" errors="0" skipped="0""#),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("Pod shop/&lt;admin&gt;"), "{}", ran.out);
}

#[test]
fn a_file_by_position_is_told_where_it_belongs() {
    let ran = run(
        &[("a.yaml", "x: y\n")],
        &["check", "a.yaml", "--rules", "a.yaml"],
        "",
    );
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("-f a.yaml"), "{}", ran.err);
    assert_eq!(run(&[], &["check", "--rules", "a.yaml"], "").code, 64);
    assert_eq!(
        run(&[], &["check", "-f", "a.yaml", "--ignore", "a["], "").code,
        64
    );
}

#[test]
fn the_last_of_two_keys_in_json_counts_and_is_told() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "shop",
        "annotations": {"iam.amazonaws.com/role": "reader", "iam.amazonaws.com/role": "admin"}}, "spec": {}}"#;
    let ran = check(&["-o", "json"], text);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert_eq!(printed(&ran).last().unwrap(), "warning 1 a repeated key");
    let yaml = pod("a", "  name: b\n");
    let ran = check(&[], &yaml);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("duplicate key name"), "{}", ran.err);
}

#[test]
fn policies_see_the_defaults_of_the_api_server() {
    let policy = "\
package kubernetes.admission

deny[msg] {
  input.request.object.spec.template.spec.containers[_].imagePullPolicy == \"Always\"
  msg := \"always pulled\"
}
";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: shop}\n\
                      spec: {template: {spec: {containers: [{name: app, image: app}]}}}\n";
    let files = [("pull.rego", policy)];
    let more = ["--rules", "pull.rego", "--layer=rego=enforce"];
    assert_eq!(check_files(&files, &more, deployment).code, 3);
    let fixed = deployment.replace("image: app", "image: 'app:1'");
    assert_eq!(check_files(&files, &more, &fixed).code, 0);
}
