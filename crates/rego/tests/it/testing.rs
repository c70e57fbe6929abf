//! Tests of Rego tests and of line coverage.

use std::sync::Arc;

use rolegate_rego::{Coverage, PolicyStore, RegoResult};
use serde_json::json;

use crate::helpers::{ADMISSION, data, evaluate, now, pod_review, policy, store};

const DENY: &str = "\
package kubernetes.admission

deny[msg] {
	input.request.object.spec.hostNetwork
	msg := \"no host network\"
}

deny[msg] {
	not data.opa.teams.names[input.request.namespace]
	msg := \"no team\"
}
";

/// Returns the last part of each test's name with its result in one word.
fn results(store: &PolicyStore) -> Vec<String> {
    let tests = store.run_tests(now(), &Arc::default(), |_| true).unwrap();
    let actual = tests.iter().map(|test| {
        assert_eq!(test.entry, "main.rego");
        let name = test.name.rsplit('.').next().unwrap_or_default();
        let result = match &test.result {
            RegoResult::Passed => "passed".to_owned(),
            RegoResult::Failed => "failed".to_owned(),
            RegoResult::Skipped => "skipped".to_owned(),
            RegoResult::Errored(why) => format!("error {why}"),
        };
        format!("{} {name} {result}", test.line)
    });
    actual.collect()
}

#[test]
fn tests_pass_if_they_are_true_and_nothing_else() {
    let tests = "\
package any_test

test_true { true }
test_false = false
test_undefined { input.x }
test_text = \"true\"
test_input { input.x == 1 with input as {\"x\": 1} }
test_no_input { not input }
test_time { time.now_ns() == 1709294400000000000 }
test_cases[name] = value { value := {\"a\": true, \"b\": true}[name] }
test_one_case_fails[name] = value { value := {\"a\": true, \"b\": false}[name] }
todo_test_later { false }
not_a_test { false }
";
    let results = results(&store([policy("tests", ADMISSION, tests)]));
    assert_eq!(
        results,
        [
            "3 test_true passed",
            "4 test_false failed",
            "5 test_undefined failed",
            "6 test_text failed",
            "7 test_input passed",
            "8 test_no_input passed",
            "9 test_time passed",
            "10 test_cases passed",
            "11 test_one_case_fails failed",
            "12 todo_test_later skipped",
        ]
    );
}

#[test]
fn a_test_sees_every_deny_and_all_data() {
    let tests = "\
package kubernetes.admission_test

import data.kubernetes.admission

test_both { admission.deny == {\"no host network\", \"no team\", \"other\"} with input as
	{\"request\": {\"namespace\": \"shop\", \"object\": {\"spec\": {\"hostNetwork\": true}}}} }
test_data { admission.deny == {\"other\"} with input as {\"request\": {\"namespace\": \"web\"}} }
test_with_data { not admission.deny[\"no team\"] with data.opa.teams.names as {\"shop\": true}
	with input as {\"request\": {\"namespace\": \"shop\"}} }
";
    let other = "package kubernetes.admission\n\ndeny[msg] { msg := \"other\" }\n";
    let store = store([
        data("opa", "teams", "names", "{\"web\": true}"),
        policy("deny", ADMISSION, DENY),
        policy("other", ADMISSION, other),
        policy("tests", ADMISSION, tests),
    ]);
    let results = results(&store);
    assert!(
        results.iter().all(|one| one.ends_with("passed")),
        "{results:?}"
    );
    assert_eq!(results.len(), 3);
}

#[test]
fn excessive_tests_and_duplicate_names_are_errors() {
    let tests = "\
package any_test

test_large { count([r | i = numbers.range(1, 5000)[_]; r = numbers.range(i, 60000)]) > 0 }
test_twice { true }
test_twice { false }
test_two_values = 1 { true }
";
    let results = results(&store([policy("tests", ADMISSION, tests)]));
    assert!(
        results[0].starts_with("3 test_large error took "),
        "{results:?}"
    );
    assert!(
        results[1].contains("several tests have this name"),
        "{results:?}"
    );
    assert!(
        results[2].contains("several tests have this name"),
        "{results:?}"
    );
    assert_eq!(results[3], "6 test_two_values failed");
}

#[test]
fn only_observed_policies_record_coverage() {
    let mut store = store([
        data("opa", "teams", "names", "{\"team-a\": true}"),
        policy("deny", ADMISSION, DENY),
        policy("tests", ADMISSION, "package a_test\n\ntest_a { true }\n"),
    ]);
    let coverage = Arc::new(Coverage::default());
    let lines = |store: &PolicyStore| {
        let all = store.coverage(&coverage);
        assert_eq!(all.len(), 1, "tests are left out");
        all.into_iter().next().unwrap().2
    };
    let pod = |network: bool| pod_review(json!({}), json!({"hostNetwork": network}));
    let policies = store.snapshot();
    evaluate(&policies, &pod(true));
    assert!(lines(&store).covered.is_empty());
    let observed = policies.observed(&coverage);
    assert_eq!(
        evaluate(&observed, &pod(false)),
        evaluate(&policies, &pod(false))
    );
    let seen = lines(&store);
    assert!(
        seen.covered.contains(&4) && seen.not_covered.contains(&5),
        "{seen:?}"
    );
    evaluate(&observed, &pod(true));
    let seen = lines(&store);
    assert!(
        seen.covered.contains(&5) && seen.not_covered.contains(&10),
        "{seen:?}"
    );
}

#[test]
fn tests_may_use_more_memory_than_reviews() {
    let large = "count([r | n := numbers.range(1, 20)[_]; r := numbers.range(n, n + 50000)]) == 20";
    let tests = format!("package any_test\n\ntest_large {{ {large} }}\n");
    let passed = results(&store([policy("tests", ADMISSION, &tests)]));
    assert_eq!(passed, ["3 test_large passed"]);
    let deny = format!("package kubernetes.admission\n\ndeny[\"x\"] {{ {large} }}\n");
    let findings = evaluate(
        &store([policy("p", ADMISSION, &deny)]).snapshot(),
        &pod_review(json!({}), json!({})),
    );
    assert!(format!("{findings:?}").contains("memory"), "{findings:?}");
}

#[test]
fn policies_that_refuse_nothing_are_known() {
    let library = "package lib\n\nbad { input.x }\n";
    let user = "package kubernetes.admission\n\ndeny[\"x\"] { data.lib.bad }\n";
    let gatekeeper = "package k8s\n\nviolation[{\"msg\": \"x\"}] { input.x }\n";
    let unused = |policies: &[(&str, &str)]| {
        let policies = policies
            .iter()
            .map(|(name, text)| policy(name, ADMISSION, text));
        let store = store(policies);
        let actual = store.unused_policies().into_iter();
        actual
            .map(|one| format!("{} {}", one.policy, one.has_violation))
            .collect::<Vec<_>>()
    };
    assert_eq!(unused(&[("lib", library)]), ["opa/lib false"]);
    assert!(unused(&[("lib", library), ("user", user)]).is_empty());
    assert_eq!(
        unused(&[("k8s", gatekeeper), ("user", user), ("lib", library)]),
        ["opa/k8s true"]
    );
    assert!(unused(&[("t", "package a\n\ntest_a { true }\n")]).is_empty());
}
