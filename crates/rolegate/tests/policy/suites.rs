//! Tests of `rolegate policy test`: objects with expected verdicts, and tests in Rego.

use std::path::Path;

use crate::{BASE, Ran, json, run, run_in};

const POLICY: &str = "\
package kubernetes.admission

import data.lib

deny[msg] {
	image := lib.images[_]
	not startswith(image, \"registry.example/\")
	msg := sprintf(\"image %s is not from our registry\", [image])
}

deny[msg] {
	input.request.object.spec.hostNetwork
	msg := \"no host network\"
}
";
const LIBRARY: &str = "\
package lib

images[image] {
	image := input.request.object.spec.containers[_].image
}
";
const REGO_TESTS: &str = "\
package kubernetes.admission_test

import data.kubernetes.admission

review(image) = {\"request\": {\"object\": {\"spec\": {\"containers\": [{\"image\": image}]}}}}

test_ours {
	count(admission.deny) == 0 with input as review(\"registry.example/a\")
}

test_theirs {
	admission.deny[\"image nginx is not from our registry\"] with input as review(\"nginx\")
}

todo_test_later {
	false
}
";
const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: ours, namespace: shop}
spec: {containers: [{name: app, image: registry.example/app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: theirs, namespace: shop}
spec: {containers: [{name: app, image: nginx}]}
";
const TEST: &str = "\
apiVersion: cli.rolegate.dev/v1alpha1
kind: PolicyTest
metadata: {name: images}
spec:
  cases:
  - name: our registry
    file: pods.yaml
    select: {name: ours}
    expect: {verdict: allowed}
  - name: another registry
    file: pods.yaml
    select: {name: theirs}
    expect:
      verdict: denied
      by: [{layer: rego, rule: images.rego, message: not from our registry}]
";

fn files() -> Vec<(&'static str, &'static str)> {
    vec![
        ("policies/images.rego", POLICY),
        ("policies/lib.rego", LIBRARY),
        ("policies/images_test.rego", REGO_TESTS),
        ("policies/pods.yaml", PODS),
        ("policies/images.yaml", TEST),
    ]
}

fn test(files: &[(&str, &str)], more: &[&str]) -> Ran {
    run(files, &[&["test", "policies", BASE][..], more].concat(), "")
}

/// Returns the files with one of them changed.
fn changed<'a>(name: &str, text: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut files: Vec<(&str, &str)> = files();
    let file = files.iter_mut().find(|(file, _)| *file == name).unwrap();
    file.1 = text;
    files
}

#[test]
fn tests_of_both_kinds_pass_beside_their_rules() {
    let ran = test(&files(), &[]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(
        ran.out
            .ends_with("5 tests: 4 passed, 0 failed, 1 skipped\n"),
        "{}",
        ran.out
    );
    let ran = test(&files(), &["-o", "json"]);
    let printed = json(&ran);
    assert_eq!(
        (&printed["passed"], &printed["skipped"]),
        (&4.into(), &1.into())
    );
    assert_eq!(printed["tests"][0]["name"], "our registry");
    assert_eq!(printed["tests"][0]["line"], 6);
    assert_eq!(printed["tests"][2]["file"], "policies/images_test.rego");
    let ran = test(&files(), &["--verbose", "--run", "registry$"]);
    assert_eq!(ran.out.matches("passed").count(), 3, "{}", ran.out);
    assert!(
        ran.out.ends_with("2 tests: 2 passed, 0 failed\n"),
        "{}",
        ran.out
    );
}

#[test]
fn a_failing_test_is_told_in_every_format() {
    let loose = POLICY.replace("not startswith", "startswith");
    let files = changed("policies/images.rego", &loose);
    let ran = test(&files, &[]);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    for part in [
        "policies/images.yaml:6: failed our registry\n  Pod shop/ours: expected allowed, but it is denied",
        "policies/images.yaml:10: failed another registry\n  Pod shop/theirs: expected denied",
        "policies/images_test.rego:7: failed data.kubernetes.admission_test.test_ours\n",
        "5 tests: 0 passed, 4 failed, 1 skipped\n",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    let ran = test(&files, &["-o", "junit"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out
            .contains(r#"tests="5" failures="4" errors="0" skipped="1""#),
        "{}",
        ran.out
    );
    let ran = test(&files, &["-o", "tap"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out
            .starts_with("TAP version 13\n1..5\nnot ok 1 - our registry\n"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("todo_test_later # SKIP "), "{}", ran.out);
    assert_eq!(json(&test(&files, &["-o", "json"]))["failed"], 4);
}

#[test]
fn the_rule_that_denies_must_be_the_one_that_is_expected() {
    let other = TEST.replace("rule: images.rego", "rule: other.rego");
    let ran = test(&changed("policies/images.yaml", &other), &[]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out.contains("denied as expected, but not by layer"),
        "{}",
        ran.out
    );
}

#[test]
fn coverage_names_lines_and_grants_that_no_test_used() {
    let grants = "\
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: {name: used}
spec: {roles: [reader], subjects: [{namespaces: [shop]}]}
---
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: {name: idle}
spec: {roles: [writer], subjects: [{namespaces: [shop]}]}
";
    let more = "  - name: a reader
    object:
      apiVersion: v1
      kind: Pod
      metadata: {name: x, namespace: shop, annotations: {iam.amazonaws.com/role: reader}}
      spec: {containers: [{name: app, image: registry.example/a}]}
    expect: {verdict: allowed}
";
    let all = format!("{TEST}{more}");
    let mut files = changed("policies/images.yaml", &all);
    files.push(("policies/grants.yaml", grants));
    let ran = test(&files, &["--coverage"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(
        ran.out
            .contains("policies/images.rego: not evaluated: 11, 13\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("RoleGrant idle: allowed nothing\n"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("RoleGrant used"), "{}", ran.out);
    let coverage = json(&test(&files, &["-o", "json"]))["coverage"].clone();
    assert_eq!(
        coverage["modules"][0]["notCovered"],
        serde_json::json!([11, 13])
    );
    let idle = serde_json::json!({"name": "idle", "used": false});
    assert_eq!(coverage["grants"][0], idle);
}

#[test]
fn rules_are_where_the_file_or_the_flag_says() {
    let named = TEST.replace("spec:\n", "spec:\n  rules: [../policies]\n");
    let files = [
        ("policies/images.rego", POLICY),
        ("policies/lib.rego", LIBRARY),
        ("tests/images_test.rego", REGO_TESTS),
        ("tests/pods.yaml", PODS),
        ("tests/images.yaml", &*named),
    ];
    // Tests in Rego need the policies too.
    let ran = run(&files, &["test", "tests", "--rules", "policies"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let ran = run(&files, &["test", "tests", "policies"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let ran = run(&files, &["test", "tests/images.yaml"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let ran = run(
        &files,
        &["test", "tests/images.yaml", "--rules", "gone"],
        "",
    );
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let flagged = [
        ("policies/images.rego", POLICY),
        ("policies/lib.rego", LIBRARY),
        ("tests/pods.yaml", PODS),
        ("tests/images.yaml", TEST),
    ];
    let ran = run(&flagged, &["test", "tests", "--rules", "policies"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

#[test]
fn what_can_not_be_tested_is_an_error_and_never_a_pass() {
    let broken = POLICY.replace("msg := \"no host network\"", "msg :=");
    let ran = test(&changed("policies/images.rego", &broken), &[]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("policies/images.rego:"), "{}", ran.err);
    let broken = REGO_TESTS.replace("test_theirs {", "test_theirs {{");
    let ran = test(&changed("policies/images_test.rego", &broken), &[]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("policies/images_test.rego:"),
        "{}",
        ran.err
    );
    let unknown = TEST.replace("verdict: allowed", "verdikt: allowed");
    let ran = test(&changed("policies/images.yaml", &unknown), &[]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("policies/images.yaml:9: unknown field `verdikt`"),
        "{}",
        ran.err
    );
    let gone = TEST.replace("file: pods.yaml", "file: gone.yaml");
    let ran = test(&changed("policies/images.yaml", &gone), &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("policies/images.yaml:6"), "{}", ran.err);
    // No test, none with that name, and two with one name.
    let ran = run(
        &[
            ("policies/images.rego", POLICY),
            ("policies/lib.rego", LIBRARY),
        ],
        &["test", "policies"],
        "",
    );
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("found no test"), "{}", ran.err);
    assert_eq!(test(&files(), &["--run", "nothing of this name"]).code, 1);
    assert_eq!(test(&files(), &["--run", "("]).code, 64);
    assert_eq!(run(&[], &["test"], "").code, 64);
    let twice = REGO_TESTS.replace("test_theirs {", "test_ours {");
    let ran = test(&changed("policies/images_test.rego", &twice), &[]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.out.contains("several tests have this name"),
        "{}",
        ran.out
    );
    let selected = TEST.replace("{name: ours}", "{name: missing}");
    let ran = test(&changed("policies/images.yaml", &selected), &[]);
    assert_eq!(ran.code, 3);
    assert!(ran.out.contains("no object is selected"), "{}", ran.out);
}

#[test]
fn rego_tests_of_config_maps_are_run_with_their_data() {
    let maps = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: tiers, namespace: opa, labels: {openpolicyagent.org/policy: rego}}
data:
  tiers.rego: |
    package kubernetes.admission
    deny[msg] {
      not is_known
      msg := \"no such tier\"
    }
    is_known { data.opa.known.tiers.names[_] == input.request.object.metadata.labels.tier }
    test_known { count(deny) == 0 with input as {\"request\": {\"object\": {\"metadata\": {\"labels\": {\"tier\": \"front\"}}}}} }
    test_unknown { deny[\"no such tier\"] with input as {\"request\": {\"object\": {\"metadata\": {\"labels\": {\"tier\": \"x\"}}}}} }
    test_data { deny[\"no such tier\"] with data.opa.known.tiers.names as [] with input as {\"request\": {\"object\": {\"metadata\": {\"labels\": {\"tier\": \"front\"}}}}} }
---
apiVersion: v1
kind: ConfigMap
metadata: {name: known, namespace: opa, labels: {openpolicyagent.org/data: opa}}
data:
  tiers: '{\"names\": [\"front\"]}'
";
    let ran = run(&[("maps.yaml", maps)], &["test", "maps.yaml", "-v"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("3 tests: 3 passed"), "{}", ran.out);
    assert!(
        ran.out.contains("opa/tiers: tiers.rego:7: passed"),
        "{}",
        ran.out
    );
}

#[test]
fn the_example_of_the_documentation_passes() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let ran = run_in(&examples, &["test", "policy-test", "--coverage"], "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    for part in [
        "5 passed, 0 failed, 1 skipped",
        "100 % of 4 lines",
        "1 of 1 grant",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
}
