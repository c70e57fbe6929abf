//! Tests of which decisions are kept, for which workloads they count, and the memory they take.

mod property;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::layer::{ActiveLayer, Ask, Layer, Mode, Verdict};
use crate::namespace::NamespaceRules;
use crate::workload::tests::pod;

#[derive(Debug, Default)]
struct Counting {
    asked: AtomicUsize,
    reads: Reads,
    reads_time: bool,
    passing: bool,
}

impl Layer for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn judge(&self, _: &Ask<'_>) -> Verdict {
        self.asked.fetch_add(1, Relaxed);
        match self.passing {
            true => Verdict::Deny {
                rule: "slow".into(),
                reason: "not done in time".into(),
                passing: true,
            },
            false => Verdict::allow("counted"),
        }
    }

    fn reads(&self) -> Reads {
        self.reads
    }

    fn reads_time(&self) -> bool {
        self.reads_time
    }
}

/// Counts how often a layer is asked for pods that differ in everything but the wish.
fn asked(layer: Counting, scope: SessionScope) -> usize {
    let layer = Arc::new(layer);
    let namespace = Arc::new(NamespaceRules::of_labels(KeyValues::default()));
    let rules = RuleSet {
        layers: vec![ActiveLayer {
            layer: layer.clone(),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new([("default".into(), namespace)].into()),
        scope,
        ..RuleSet::default()
    };
    let memo = Memo::default();
    for number in 0..10 {
        let pod = Workload {
            name: format!("pod-{number}").into(),
            uid: format!("uid-{number}").into(),
            labels: [("number", number.to_string())].into_iter().collect(),
            ..pod(Some("arn:aws:iam::123456789012:role/reader"))
        };
        let kept = memo.decide(&rules, &pod, Timestamp::UNIX_EPOCH);
        assert_eq!(kept, rules.decide(&pod, Timestamp::UNIX_EPOCH));
    }
    layer.asked.load(Relaxed) - 10
}

#[test]
fn workloads_that_look_the_same_to_the_rules_share_a_decision() {
    assert_eq!(asked(Counting::default(), SessionScope::Workload), 1);
    assert_eq!(asked(Counting::default(), SessionScope::Pod), 10);
    let labels = Reads {
        labels: true,
        ..Reads::default()
    };
    let identity = Reads {
        identity: true,
        ..Reads::default()
    };
    let pod = Reads {
        pod: true,
        ..Reads::default()
    };
    for reads in [labels, identity, pod] {
        let layer = Counting {
            reads,
            ..Counting::default()
        };
        assert_eq!(asked(layer, SessionScope::Workload), 10, "{reads:?}");
    }
    let timed = Counting {
        reads_time: true,
        ..Counting::default()
    };
    assert_eq!(asked(timed, SessionScope::Workload), 10);
}

#[test]
fn what_is_of_the_moment_is_not_kept() {
    let slow = Counting {
        passing: true,
        ..Counting::default()
    };
    assert_eq!(asked(slow, SessionScope::Workload), 10);
}

#[test]
fn rule_09_wishes_of_any_number_and_length_take_bounded_memory() {
    let rules = RuleSet {
        namespaces: Arc::new(
            [(
                "default".into(),
                Arc::new(NamespaceRules::of_labels(KeyValues::default())),
            )]
            .into(),
        ),
        ..RuleSet::default()
    };
    let memo = Memo::default();
    for number in 0..10_000 {
        let mut pod = pod(Some("x"));
        pod.wish.role = Some(format!("{number}{}", "x".repeat(2000)).into());
        memo.decide(&rules, &pod, Timestamp::UNIX_EPOCH);
    }
    let kept = memo.lock();
    let bytes: usize = kept.decisions.keys().map(Look::bytes).sum();
    assert_eq!(bytes, kept.bytes);
    assert!(bytes <= MOST && kept.decisions.len() < 5_000);
}

#[test]
fn rules_of_before_do_not_come_back() {
    let rules = |generation| RuleSet {
        generation,
        ..RuleSet::default()
    };
    let memo = Memo::default();
    memo.decide(&rules(2), &pod(None), Timestamp::UNIX_EPOCH);
    memo.decide(&rules(1), &pod(Some("x")), Timestamp::UNIX_EPOCH);
    let kept = memo.lock();
    assert_eq!((kept.generation, kept.decisions.len()), (2, 1));
}

/// Two Deployments whose pods ask in turn: each is decided once for one state of the rules.
#[test]
fn decisions_are_kept_until_the_rules_change() {
    let layer = Arc::new(Counting::default());
    let namespace = Arc::new(NamespaceRules::of_labels(KeyValues::default()));
    let mut rules = RuleSet {
        layers: vec![ActiveLayer {
            layer: layer.clone(),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new([("default".into(), namespace)].into()),
        ..RuleSet::default()
    };
    let memo = Memo::default();
    for generation in 1..=3 {
        rules.generation = generation;
        for _ in 0..5 {
            for role in ["one", "two"] {
                let role = format!("arn:aws:iam::123456789012:role/{role}");
                memo.decide(&rules, &pod(Some(&role)), Timestamp::UNIX_EPOCH);
            }
        }
        assert_eq!(layer.asked.load(Relaxed) as u64, 2 * generation);
    }
}

#[test]
fn rule_09_all_that_tenants_write_is_counted() {
    let text = |length: usize| -> Option<Arc<str>> { Some("x".repeat(length).into()) };
    let pairs = |length: usize| -> KeyValues {
        [("k".repeat(length), "v".repeat(length))]
            .into_iter()
            .collect()
    };
    let of = |labels: Option<KeyValues>, annotations: Option<KeyValues>, wish: Wish| Look {
        namespace: "default".into(),
        service_account: "default".into(),
        wish,
        mirror: false,
        pod: None,
        too_large: (false, false),
        labels,
        identity: annotations.map(|annotations| Identity {
            node: None,
            host_network: false,
            annotations,
        }),
    };
    let bytes = |look: Look| look.bytes();
    assert_eq!(bytes(of(None, None, Wish::default())), EACH);
    assert_eq!(
        bytes(of(Some(pairs(1000)), None, Wish::default())),
        EACH + 2000
    );
    assert_eq!(
        bytes(of(None, Some(pairs(300)), Wish::default())),
        EACH + 600
    );
    // The decision repeats what was wished.
    let wish = Wish {
        role: text(100),
        external_id: text(20),
        session_name: text(3),
    };
    assert_eq!(
        bytes(of(Some(pairs(1)), Some(pairs(2)), wish)),
        EACH + 2 * 123 + 2 + 4
    );
}
