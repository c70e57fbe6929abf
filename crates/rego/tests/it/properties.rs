//! Properties that hold for any policies and any reviews.

use std::time::Duration;

use proptest::prelude::*;
use rolegate_rego::{Kind, Limits, Policies, PolicySource, PolicyStore, Settings};
use serde_json::{Value, json};

use crate::helpers::{ADMISSION, BOTH, data, evaluate, now, policy};

/// Rules from which policies are generated.
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
        ADMISSION,
        &format!(
            "package kubernetes.admission\n\n{}\n{helper}\n",
            chosen.join("\n")
        ),
    )
}

fn snapshot(store: &mut PolicyStore) -> std::sync::Arc<Policies> {
    store.snapshot()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_further_policy_never_allows_more(one in any::<[bool; 8]>(), two in any::<[bool; 8]>(), review in review()) {
        let mut store = PolicyStore::new(Settings::default());
        store.apply(source("one", &one));
        let alone = evaluate(&snapshot(&mut store), &review);
        store.apply(source("two", &two));
        let both = evaluate(&snapshot(&mut store), &review);
        for denial in &alone.denials {
            prop_assert!(both.denials.iter().any(|other| other.policy == denial.policy), "{denial:?}");
        }
        store.delete(Kind::Policy, "opa", "two");
        prop_assert_eq!(evaluate(&snapshot(&mut store), &review), alone);
    }

    #[test]
    fn a_deny_rule_less_never_denies_more(rules in any::<[bool; 8]>(), less in 0..8usize, review in review()) {
        let mut fewer = rules;
        fewer[less] = false;
        let mut books = [PolicyStore::new(Settings::default()), PolicyStore::new(Settings::default())];
        books[0].apply(source("p", &rules));
        books[1].apply(source("p", &fewer));
        let more = evaluate(&snapshot(&mut books[0]), &review);
        let fewer = evaluate(&snapshot(&mut books[1]), &review);
        prop_assert!(more.is_allowed() <= fewer.is_allowed(), "{more:?} {fewer:?}");
    }

    #[test]
    fn anything_may_come(text in ".{0,200}", tokens in proptest::collection::vec(0..TOKENS.len(), 0..40), input in ".{0,40}") {
        let mut store = PolicyStore::new(Settings { wrap_pods: true, ..Settings::default() });
        let written: String = tokens.iter().map(|place| TOKENS[*place]).collect();
        store.apply(policy("text", BOTH, &text));
        store.apply(policy("tokens", BOTH, &format!("package kubernetes.admission\n{written}")));
        store.apply(data("a", "b", "c", &text));
        let policies = store.snapshot();
        let _ = policies.evaluate_review_json(input.as_bytes(), now());
        for finding in evaluate(&policies, &json!({"request": {"object": {"x": input}}})).denials {
            prop_assert!(!finding.message.chars().any(char::is_control));
        }
        let _ = store.statuses();
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
fn policies_are_evaluated_on_many_threads() {
    let mut store = PolicyStore::new(Settings {
        limits: Limits {
            // A thread may have to wait for a core.
            eval_time: Duration::from_secs(60),
            question_time: Duration::from_secs(60),
            ..Limits::default()
        },
        ..Settings::default()
    });
    store.apply(source(
        "p",
        &[true, true, true, true, false, true, false, true],
    ));
    let policies = store.snapshot();
    let review =
        json!({"request": {"namespace": "a", "object": {"metadata": {"labels": {"team": "x"}}}}});
    let expected = evaluate(&policies, &review);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(evaluate(&policies, &review), expected);
                }
            });
        }
    });
}
