//! Decisions kept for workloads that look the same to the rules: the pods of one Deployment share
//! one, whatever they are called.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::decision::{Decision, RuleSet};
use crate::key_values::KeyValues;
use crate::layer::Reads;
use crate::session_name::SessionScope;
use crate::workload::{Wish, Workload};

/// Most decisions kept; beyond it all are forgotten and made again.
const MOST: usize = 65_536;

/// What of a workload the rules can see.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Look {
    namespace: Arc<str>,
    service_account: Arc<str>,
    wish: Wish,
    mirror: bool,
    /// Name and UID, where the session is the pod's own or a layer looks at them.
    pod: Option<(Arc<str>, Arc<str>)>,
    labels: Option<KeyValues>,
    identity: Option<Identity>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    node: Option<Arc<str>>,
    host_network: bool,
    annotations: KeyValues,
}

/// Decisions by one state of the rules.
#[derive(Debug, Default)]
pub struct Memo {
    generation: u64,
    decisions: HashMap<Look, Decision>,
}

impl Memo {
    /// As [`RuleSet::decide`], which is asked once for each look.
    pub fn decide(&mut self, rules: &RuleSet, workload: &Workload, now: Timestamp) -> Decision {
        if rules.reads_time() {
            return rules.decide(workload, now);
        }
        if self.generation != rules.generation || self.decisions.len() >= MOST {
            self.decisions.clear();
            self.generation = rules.generation;
        }
        let look = look(rules, workload);
        if let Some(decision) = self.decisions.get(&look) {
            return decision.clone();
        }
        let decision = rules.decide(workload, now);
        self.decisions.insert(look, decision.clone());
        decision
    }

    /// How many decisions are kept.
    pub fn len(&self) -> usize {
        self.decisions.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty()
    }
}

fn look(rules: &RuleSet, workload: &Workload) -> Look {
    let mut reads = Reads::default();
    for active in &rules.layers {
        let layer = active.layer.reads();
        reads.labels |= layer.labels;
        reads.pod |= layer.pod;
        reads.identity |= layer.identity;
    }
    let scope = rules.attribution.scope(rules.scope);
    let own = reads.pod || reads.identity || scope == SessionScope::Pod;
    Look {
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        wish: workload.wish.clone(),
        mirror: workload.mirror,
        pod: own.then(|| (workload.name.clone(), workload.uid.clone())),
        labels: reads.labels.then(|| workload.labels.clone()),
        identity: reads.identity.then(|| Identity {
            node: workload.node.clone(),
            host_network: workload.host_network,
            annotations: workload.annotations.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
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
    }

    impl Layer for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn judge(&self, _: &Ask<'_>) -> Verdict {
            self.asked.fetch_add(1, Relaxed);
            Verdict::allow("counted")
        }

        fn reads(&self) -> Reads {
            self.reads
        }

        fn reads_time(&self) -> bool {
            self.reads_time
        }
    }

    /// How often a layer is asked for pods that differ in everything but the wish.
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
        let mut memo = Memo::default();
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
}
