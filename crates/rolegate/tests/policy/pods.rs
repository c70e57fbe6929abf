//! Tests of explanations of all pods and of templates, and of output formats.

use serde_json::{Value, json as value};

use crate::{BASE, GRANT, PODS, RESTRICTED, RULES, json, run};

const DEPLOYMENT: &str = "\
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  template:
    metadata: {annotations: {iam.amazonaws.com/role: shop-x}}
    spec: {containers: [{name: app, image: app}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec:
  jobTemplate:
    spec:
      template:
        metadata: {annotations: {iam.amazonaws.com/role: admin}}
        spec: {containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bad-0, namespace: shop, uid: u3, annotations: {iam.amazonaws.com/role: admin}}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: done-0, namespace: shop, uid: u4, annotations: {iam.amazonaws.com/role: admin}}
spec: {containers: [{name: app, image: app}]}
status: {phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: plain-0, namespace: web, uid: u5}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running}
";

fn explain(words: &[&str]) -> crate::Ran {
    let files = [("rules.yaml", &*format!("{RULES}{PODS}{DEPLOYMENT}"))];
    let rules = ["explain", "--rules", "rules.yaml", BASE, RESTRICTED];
    run(&files, &[&rules, words].concat(), "")
}

#[test]
fn pods_that_are_refused_are_listed_with_the_reason() {
    let all = explain(&["-A", "--denied"]);
    assert_eq!(all.code, 3, "{}{}", all.out, all.err);
    assert!(
        all.out.contains("bad-0") && all.out.contains("does not allow"),
        "{}",
        all.out
    );
    assert!(
        all.out.contains("1 of 4 pods denied their role"),
        "{}",
        all.out
    );
    for other in ["api-0", "done-0", "plain-0"] {
        assert!(!all.out.contains(other), "{other}: {}", all.out);
    }
    let shop = explain(&["-n", "shop", "--denied", "-o", "json"]);
    assert_eq!(shop.code, 3, "{}", shop.err);
    let printed = json(&shop);
    assert_eq!(
        printed["counts"],
        value!({"pods": 2, "allowed": 1, "denied": 1, "noRole": 0})
    );
    assert_eq!(printed["items"].as_array().unwrap().len(), 1);
    assert_eq!(printed["items"][0]["decision"], "denied");
    assert_eq!(printed["items"][0]["denial"]["layer"], "namespace");
    assert_eq!(printed["rules"]["layers"]["namespace"], "enforce");
    // No pod of the other namespace is denied.
    let web = explain(&["-n", "web", "--denied"]);
    assert_eq!(web.code, 0, "{}{}", web.out, web.err);
    // Without --denied all pods are listed.
    let every = explain(&["pods", "-A", "-o", "wide"]);
    assert_eq!(every.code, 3);
    for pod in ["api-0", "bad-0", "front-0", "plain-0", "SERVICE ACCOUNT"] {
        assert!(every.out.contains(pod), "{pod}: {}", every.out);
    }
    let names = explain(&["-A", "-o", "name"]).out;
    assert_eq!(names, "pod/api-0\npod/bad-0\npod/front-0\npod/plain-0\n");
}

#[test]
fn objects_are_named_as_kubectl_names_them() {
    for (words, code) in [
        (&["api-0"][..], 0),
        (&["pod", "api-0"], 0),
        (&["pod/api-0"], 0),
        (&["deploy/api"], 0),
        (&["deployment", "api"], 0),
        (&["cronjob/nightly"], 3),
    ] {
        let ran = explain(&[words, &["-n", "shop"]].concat());
        assert_eq!(ran.code, code, "{words:?}: {}{}", ran.out, ran.err);
    }
    let name = explain(&["deploy", "api", "-n", "shop", "-o", "name"]);
    assert_eq!(name.out, "deployment.apps/api\n");
    for (words, why) in [
        (&["deploy"][..], "deployment/NAME"),
        (&["pod/x", "-A"], "omit them or pod/x"),
        (&["pod/x", "--denied"], "omit them or pod/x"),
        (&["-A", "-n", "shop"], "cannot be used with"),
    ] {
        let ran = explain(words);
        assert_eq!(ran.code, 64, "{words:?}: {}", ran.out);
        assert!(ran.err.contains(why), "{words:?}: {}", ran.err);
    }
}

#[test]
fn a_namespace_limits_what_is_simulated_and_suggested() {
    let files = [
        ("now.yaml", &*format!("{RULES}{PODS}")),
        ("grant.yaml", GRANT),
    ];
    let simulate = [
        "simulate",
        "--rules",
        "grant.yaml",
        "-f",
        "now.yaml",
        BASE,
        RESTRICTED,
    ];
    let with = |more: &[&str]| run(&files, &[&simulate[..], more].concat(), "");
    assert_eq!(with(&["-n", "shop"]).code, 0);
    assert_eq!(with(&["-A"]).code, 3);
    // The default is all namespaces: an omitted one would seem to have no findings.
    assert_eq!(with(&[]).code, 3);
    assert_eq!(with(&["-o", "name"]).out, "pod/front-0\n");
    let suggest = run(
        &files,
        &["suggest", "-f", "now.yaml", BASE, "-n", "web", "-o", "name"],
        "",
    );
    assert_eq!(
        suggest.out.lines().count(),
        1,
        "{}{}",
        suggest.out,
        suggest.err
    );
    assert!(
        suggest.out.starts_with("rolegrant.rolegate.dev/"),
        "{}",
        suggest.out
    );
}

#[test]
fn every_command_that_prints_data_has_the_same_formats() {
    let test = "apiVersion: cli.rolegate.dev/v1alpha1\nkind: PolicyTest\nmetadata: {name: t}\nspec:\n  \
                rules: [../rules.yaml]\n  cases:\n  - name: plain\n    object: {apiVersion: v1, kind: Pod, \
                metadata: {name: x, namespace: shop}, spec: {containers: []}}\n    \
                expect: {verdict: allowed}\n";
    let pod = format!("{PODS}{DEPLOYMENT}");
    let rules = format!("{RULES}---\n{GRANT}");
    let files = [
        ("rules.yaml", &*rules),
        ("pods.yaml", &*pod),
        ("tests/test.yaml", test),
    ];
    let both = ["--rules", "rules.yaml", "--rules", "pods.yaml"];
    let commands: [(&[&str], &[&str]); 7] = [
        (&["explain", "pod/api-0", "-n", "shop", BASE], &both),
        (
            &["check", "-f", "pods.yaml", "--rules", "rules.yaml", BASE],
            &[],
        ),
        (&["test", "tests", BASE], &[]),
        (
            &[
                "simulate",
                "--rules",
                "rules.yaml",
                "-f",
                "pods.yaml",
                BASE,
                RESTRICTED,
            ],
            &[],
        ),
        (&["suggest", "-f", "pods.yaml", BASE], &[]),
        (&["convert", "-f", "rules.yaml", BASE], &[]),
        (
            &["export", "--format=webhook", "--rules", "rules.yaml", BASE],
            &[],
        ),
    ];
    for (command, more) in commands {
        let with = |format| run(&files, &[command, more, &["-o", format]].concat(), "");
        for format in ["text", "wide", "name", "yaml", "json"] {
            let ran = with(format);
            assert_ne!(ran.code, 64, "{command:?} {format}: {}", ran.err);
            assert_ne!(ran.code, 1, "{command:?} {format}: {}", ran.err);
        }
        let as_json = json(&with("json"));
        let as_yaml = with("yaml").out;
        if !matches!(command[0], "suggest" | "convert") {
            let as_yaml: Value = serde_saphyr::from_str(&as_yaml).unwrap();
            assert_eq!(as_yaml, as_json, "{command:?}");
        }
        let ran = with("xml");
        assert_eq!(ran.code, 64, "{command:?}");
    }
}
