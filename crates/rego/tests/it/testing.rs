//! Tests in Rego, and which lines of policies are evaluated.

use std::sync::Arc;

use rolegate_rego::{Coverage, PolicyBook, RegoResult};
use serde_json::json;

use crate::stage::{GATE, book, data, judge, now, pod_review, policy};

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

/// The last part of each test's name, and its result in a word.
fn results(book: &PolicyBook) -> Vec<String> {
    let tests = book.run_tests(now(), &Arc::default(), |_| true).unwrap();
    let told = tests.iter().map(|test| {
        let name = test.name.rsplit('.').next().unwrap_or_default();
        let result = match &test.result {
            RegoResult::Passed => "passed".to_owned(),
            RegoResult::Failed => "failed".to_owned(),
            RegoResult::Skipped => "skipped".to_owned(),
            RegoResult::Errored(why) => format!("error {why}"),
        };
        format!("{} {name} {result}", test.line)
    });
    told.collect()
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
    let results = results(&book([policy("tests", GATE, tests)]));
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
    let book = book([
        data("opa", "teams", "names", "{\"web\": true}"),
        policy("deny", GATE, DENY),
        policy("other", GATE, other),
        policy("tests", GATE, tests),
    ]);
    let results = results(&book);
    assert!(
        results.iter().all(|one| one.ends_with("passed")),
        "{results:?}"
    );
    assert_eq!(results.len(), 3);
}

#[test]
fn a_test_that_takes_too_much_is_an_error_and_two_of_one_name_are() {
    let tests = "\
package any_test

test_large { count([r | i = numbers.range(1, 5000)[_]; r = numbers.range(i, 60000)]) > 0 }
test_twice { true }
test_twice { false }
test_two_values = 1 { true }
";
    let results = results(&book([policy("tests", GATE, tests)]));
    assert!(
        results[0].starts_with("3 test_large error took "),
        "{results:?}"
    );
    assert!(
        results[1].contains("several tests of this name"),
        "{results:?}"
    );
    assert!(
        results[2].contains("several tests of this name"),
        "{results:?}"
    );
    assert_eq!(results[3], "6 test_two_values failed");
}

#[test]
fn lines_that_were_evaluated_are_known_of_observed_policies_alone() {
    let mut book = book([
        data("opa", "teams", "names", "{\"team-a\": true}"),
        policy("deny", GATE, DENY),
        policy("tests", GATE, "package a_test\n\ntest_a { true }\n"),
    ]);
    let coverage = Arc::new(Coverage::default());
    let lines = |book: &PolicyBook| {
        let all = book.coverage(&coverage);
        assert_eq!(all.len(), 1, "tests are left out");
        all.into_iter().next().unwrap().2
    };
    let pod = |network: bool| pod_review(json!({}), json!({"hostNetwork": network}));
    let policies = book.snapshot();
    judge(&policies, &pod(true));
    assert!(lines(&book).covered.is_empty());
    let observed = policies.observed(&coverage);
    assert_eq!(judge(&observed, &pod(false)), judge(&policies, &pod(false)));
    let seen = lines(&book);
    assert!(
        seen.covered.contains(&4) && seen.not_covered.contains(&5),
        "{seen:?}"
    );
    judge(&observed, &pod(true));
    let seen = lines(&book);
    assert!(
        seen.covered.contains(&5) && seen.not_covered.contains(&10),
        "{seen:?}"
    );
}

#[test]
fn policies_that_refuse_nothing_are_known() {
    let library = "package lib\n\nbad { input.x }\n";
    let user = "package kubernetes.admission\n\ndeny[\"x\"] { data.lib.bad }\n";
    let gatekeeper = "package k8s\n\nviolation[{\"msg\": \"x\"}] { input.x }\n";
    let unasked = |policies: &[(&str, &str)]| {
        let policies = policies.iter().map(|(name, text)| policy(name, GATE, text));
        let book = book(policies);
        let told = book.unasked().into_iter();
        told.map(|one| format!("{} {}", one.policy, one.has_violation))
            .collect::<Vec<_>>()
    };
    assert_eq!(unasked(&[("lib", library)]), ["opa/lib false"]);
    assert!(unasked(&[("lib", library), ("user", user)]).is_empty());
    assert_eq!(
        unasked(&[("k8s", gatekeeper), ("user", user), ("lib", library)]),
        ["opa/k8s true"]
    );
    assert!(unasked(&[("t", "package a\n\ntest_a { true }\n")]).is_empty());
}
