//! Tests of cached decisions: which workloads share them, and their memory.

mod property;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::layer::{AccessRequest, ActiveLayer, Layer, LayerId, Mode, Verdict};
use crate::namespace::NamespaceRules;
use crate::test_util::pod;

#[derive(Debug, Default)]
struct Counting {
    asked: AtomicUsize,
    reads: WorkloadFields,
    reads_time: bool,
    transient: bool,
}

impl Layer for Counting {
    fn id(&self) -> LayerId {
        LayerId::Rego
    }

    fn evaluate(&self, _: &AccessRequest<'_>) -> Verdict {
        self.asked.fetch_add(1, Relaxed);
        if self.transient {
            Verdict::Deny {
                rule: "slow".into(),
                reason: "not done in time".into(),
                transient: true,
            }
        } else {
            Verdict::allow("counted")
        }
    }

    fn reads(&self) -> WorkloadFields {
        self.reads
    }

    fn reads_time(&self) -> bool {
        self.reads_time
    }
}

/// Returns how often a layer is evaluated for pods that differ in everything but the role request.
fn asked(layer: Counting, scope: SessionScope) -> usize {
    let layer = Arc::new(layer);
    let namespace = Arc::new(NamespaceRules::from_labels(Labels::default()));
    let rules = RuleSet {
        layers: vec![ActiveLayer {
            layer: layer.clone(),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new([("default".into(), namespace)].into()),
        scope,
        ..RuleSet::default()
    };
    let cache = DecisionCache::default();
    for number in 0..10 {
        let pod = Workload {
            name: format!("pod-{number}").into(),
            uid: format!("uid-{number}").into(),
            labels: [("number", number.to_string())].into_iter().collect(),
            ..pod(Some("arn:aws:iam::123456789012:role/reader"))
        };
        let kept = cache.decide(&rules, &pod, Timestamp::UNIX_EPOCH);
        assert_eq!(kept, rules.decide(&pod, Timestamp::UNIX_EPOCH));
    }
    layer.asked.load(Relaxed) - 10
}

#[test]
fn identical_workloads_share_a_decision() {
    assert_eq!(asked(Counting::default(), SessionScope::Workload), 1);
    assert_eq!(asked(Counting::default(), SessionScope::Pod), 10);
    let labels = WorkloadFields {
        labels: true,
        ..WorkloadFields::default()
    };
    let identity = WorkloadFields {
        identity: true,
        ..WorkloadFields::default()
    };
    let pod = WorkloadFields {
        pod: true,
        ..WorkloadFields::default()
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
fn transient_results_are_not_cached() {
    let slow = Counting {
        transient: true,
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
                Arc::new(NamespaceRules::from_labels(Labels::default())),
            )]
            .into(),
        ),
        ..RuleSet::default()
    };
    let cache = DecisionCache::default();
    for number in 0..10_000 {
        let mut pod = pod(Some("x"));
        pod.role_request.role = Some(format!("{number}{}", "x".repeat(2000)).into());
        cache.decide(&rules, &pod, Timestamp::UNIX_EPOCH);
    }
    let kept = cache.lock();
    let bytes: usize = kept.decisions.keys().map(CacheKey::bytes).sum();
    assert_eq!(bytes, kept.bytes);
    assert!(bytes <= MAX_CACHE_BYTES && kept.decisions.len() < 5_000);
}

#[test]
fn rules_of_before_do_not_come_back() {
    let rules = |generation| RuleSet {
        generation,
        ..RuleSet::default()
    };
    let cache = DecisionCache::default();
    cache.decide(&rules(2), &pod(None), Timestamp::UNIX_EPOCH);
    cache.decide(&rules(1), &pod(Some("x")), Timestamp::UNIX_EPOCH);
    let kept = cache.lock();
    assert_eq!((kept.generation, kept.decisions.len()), (2, 1));
}

/// The pods of two Deployments alternate: each Deployment is decided once for a generation of the
/// rules.
#[test]
fn decisions_are_cached_until_the_rules_change() {
    let layer = Arc::new(Counting::default());
    let namespace = Arc::new(NamespaceRules::from_labels(Labels::default()));
    let mut rules = RuleSet {
        layers: vec![ActiveLayer {
            layer: layer.clone(),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new([("default".into(), namespace)].into()),
        ..RuleSet::default()
    };
    let cache = DecisionCache::default();
    for generation in 1..=3 {
        rules.generation = generation;
        for _ in 0..5 {
            for role in ["one", "two"] {
                let role = format!("arn:aws:iam::123456789012:role/{role}");
                cache.decide(&rules, &pod(Some(&role)), Timestamp::UNIX_EPOCH);
            }
        }
        assert_eq!(layer.asked.load(Relaxed) as u64, 2 * generation);
    }
}

#[test]
fn rule_09_all_that_tenants_write_is_counted() {
    let text = |length: usize| -> Option<Arc<str>> { Some("x".repeat(length).into()) };
    let pairs = |length: usize| -> Labels {
        [("k".repeat(length), "v".repeat(length))]
            .into_iter()
            .collect()
    };
    let of =
        |labels: Option<Labels>, annotations: Option<Labels>, role_request: RoleRequest| CacheKey {
            namespace: "default".into(),
            service_account: "default".into(),
            role_request,
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
    let bytes = |key: CacheKey| key.bytes();
    assert_eq!(
        bytes(of(None, None, RoleRequest::default())),
        ENTRY_OVERHEAD_BYTES
    );
    assert_eq!(
        bytes(of(Some(pairs(1000)), None, RoleRequest::default())),
        ENTRY_OVERHEAD_BYTES + 2000
    );
    assert_eq!(
        bytes(of(None, Some(pairs(300)), RoleRequest::default())),
        ENTRY_OVERHEAD_BYTES + 600
    );
    // The decision repeats the strings of the request.
    let role_request = RoleRequest {
        role: text(100),
        external_id: text(20),
        session_name: text(3),
    };
    assert_eq!(
        bytes(of(Some(pairs(1)), Some(pairs(2)), role_request)),
        ENTRY_OVERHEAD_BYTES + 2 * 123 + 2 + 4
    );
}
