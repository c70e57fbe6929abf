//! What holds for any policies and any questions.

use std::time::Duration;

use proptest::prelude::*;
use rolegate_rego::{Kind, Limits, Policies, PolicyBook, PolicySource, Settings};
use serde_json::{Value, json};

use crate::stage::{BOTH, GATE, data, judge, now, policy};

/// Rules of which policies are made.
const RULES: [&str; 8] = [
    "deny[msg] { input.request.namespace == \"a\"; msg := \"ns\" }",
    "deny[msg] { role := input.request.object.metadata.annotations[\"iam.amazonaws.com/role\"]; role != \"reader\"; msg := role }",
    "deny[msg] { not input.request.object.metadata.labels.team; msg := \"team\" }",
    "deny[msg] { data.kubernetes.namespaces[input.request.namespace].locked; msg := \"locked\" }",
    "deny[msg] { 1 + input.request.object.metadata.labels.count > 2; msg := \"count\" }",
    "deny[msg] { helper(input.request.namespace); msg := \"helper\" }",
    "deny[msg] { http.send({}); msg := \"never loads\" }",
    "deny[msg] { input.request.object.spec.hostNetwork; msg := \"host\" }",
];

fn review() -> impl Strategy<Value = Value> {
    let namespace = prop_oneof!["a", "b"];
    let role = prop_oneof!["reader", "admin"];
    (namespace, role, any::<bool>(), any::<bool>(), 0..4i64).prop_map(|(namespace, role, team, host, count)| {
        let mut labels = json!({"count": count});
        if team {
            labels["team"] = "x".into();
        }
        json!({"request": {"kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": namespace, "object": {"metadata": {"labels": labels,
            "annotations": {"iam.amazonaws.com/role": role}}, "spec": {"hostNetwork": host}}}})
    })
}

fn source(name: &str, rules: &[bool; 8]) -> PolicySource {
    let chosen: Vec<&str> = RULES
        .iter()
        .zip(rules)
        .filter(|(_, on)| **on)
        .map(|(rule, _)| *rule)
        .collect();
    let helper = "helper(x) { x == \"b\" }";
    policy(
        name,
        GATE,
        &format!(
            "package kubernetes.admission\n\n{}\n{helper}\n",
            chosen.join("\n")
        ),
    )
}

fn snapshot(book: &mut PolicyBook) -> std::sync::Arc<Policies> {
    book.snapshot()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_further_policy_never_allows_more(one in any::<[bool; 8]>(), two in any::<[bool; 8]>(), review in review()) {
        let mut book = PolicyBook::new(Settings::default());
        book.apply(source("one", &one));
        let alone = judge(&snapshot(&mut book), &review);
        book.apply(source("two", &two));
        let both = judge(&snapshot(&mut book), &review);
        for denial in &alone.denials {
            prop_assert!(both.denials.iter().any(|other| other.policy == denial.policy), "{denial:?}");
        }
        book.delete(Kind::Policy, "opa", "two");
        prop_assert_eq!(judge(&snapshot(&mut book), &review), alone);
    }

    #[test]
    fn a_deny_rule_less_never_denies_more(rules in any::<[bool; 8]>(), less in 0..8usize, review in review()) {
        let mut fewer = rules;
        fewer[less] = false;
        let mut books = [PolicyBook::new(Settings::default()), PolicyBook::new(Settings::default())];
        books[0].apply(source("p", &rules));
        books[1].apply(source("p", &fewer));
        let more = judge(&snapshot(&mut books[0]), &review);
        let fewer = judge(&snapshot(&mut books[1]), &review);
        prop_assert!(more.is_allowed() <= fewer.is_allowed(), "{more:?} {fewer:?}");
    }

    #[test]
    fn anything_may_come(text in ".{0,200}", tokens in proptest::collection::vec(0..TOKENS.len(), 0..40), input in ".{0,40}") {
        let mut book = PolicyBook::new(Settings { wrap_pods: true, ..Settings::default() });
        let written: String = tokens.iter().map(|place| TOKENS[*place]).collect();
        book.apply(policy("text", BOTH, &text));
        book.apply(policy("tokens", BOTH, &format!("package kubernetes.admission\n{written}")));
        book.apply(data("a", "b", "c", &text));
        let policies = book.snapshot();
        let _ = policies.judge_review_json(input.as_bytes(), now());
        for finding in judge(&policies, &json!({"request": {"object": {"x": input}}})).denials {
            prop_assert!(!finding.message.chars().any(char::is_control));
        }
        let _ = book.statuses();
    }
}

const TOKENS: [&str; 40] = [
    "deny",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    " msg",
    " := ",
    " = ",
    " if ",
    " contains ",
    "input",
    ".request",
    ".x",
    "data",
    ".kubernetes",
    "1",
    "\"a\"",
    "\n",
    ";",
    ",",
    "|",
    " not ",
    " some ",
    " in ",
    " every ",
    " with ",
    " as ",
    "_",
    "x",
    "y",
    "f",
    "default ",
    " else ",
    "true",
    " + ",
    "`",
    "import ",
    "count(",
];

#[test]
fn policies_are_asked_from_many_threads_at_once() {
    let mut book = PolicyBook::new(Settings {
        limits: Limits {
            // A thread may have to wait for a core.
            eval_time: Duration::from_secs(60),
            question_time: Duration::from_secs(60),
            ..Limits::default()
        },
        ..Settings::default()
    });
    book.apply(source(
        "p",
        &[true, true, true, true, false, true, false, true],
    ));
    let policies = book.snapshot();
    let review =
        json!({"request": {"namespace": "a", "object": {"metadata": {"labels": {"team": "x"}}}}});
    let expected = judge(&policies, &review);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(judge(&policies, &review), expected);
                }
            });
        }
    });
}
