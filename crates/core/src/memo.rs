//! Decisions kept for workloads that look the same to the rules: the pods of one Deployment share
//! one, whatever they are called.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::decision::{Decision, RuleSet};
use crate::key_values::KeyValues;
use crate::layer::Reads;
use crate::session_name::SessionScope;
use crate::workload::{Wish, Workload};

/// Most bytes of decisions kept, about; beyond it all are forgotten and made again.
const MOST: usize = 16 * 1024 * 1024;
/// What a decision takes beside the texts of the workload, bytes, about.
const EACH: usize = 1024;

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

impl Look {
    /// What it takes with its decision, which repeats what was wished, bytes, about.
    fn bytes(&self) -> usize {
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let pairs = |values: &KeyValues| -> usize {
            let each = values.iter().map(|(key, value)| key.len() + value.len());
            each.sum()
        };
        let wish = &self.wish;
        let wished = text(&wish.role) + text(&wish.external_id) + text(&wish.session_name);
        let labels = self.labels.as_ref().map_or(0, pairs);
        let annotations = self.identity.as_ref();
        let annotations = annotations.map_or(0, |identity| pairs(&identity.annotations));
        EACH + 2 * wished + labels + annotations
    }
}

/// Decisions by one state of the rules, for all threads.
#[derive(Debug, Default)]
pub struct Memo(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    generation: u64,
    bytes: usize,
    decisions: HashMap<Look, Decision>,
}

impl Memo {
    /// As [`RuleSet::decide`], which is asked once for each look, or by several threads at once:
    /// whoever looks up waits for none that decides.
    pub fn decide(&self, rules: &RuleSet, workload: &Workload, now: Timestamp) -> Decision {
        if rules.reads_time() {
            return rules.decide(workload, now);
        }
        let look = look(rules, workload);
        {
            let kept = self.lock();
            let known = kept.decisions.get(&look);
            if let Some(decision) = known.filter(|_| kept.generation == rules.generation) {
                return decision.clone();
            }
        }
        let decision = rules.decide(workload, now);
        if !decision.is_passing() {
            self.lock().keep(rules.generation, look, &decision);
        }
        decision
    }

    /// How many decisions are kept.
    pub fn len(&self) -> usize {
        self.lock().decisions.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, generation: u64, look: Look, decision: &Decision) {
        // Who decided by rules of before has nothing to add.
        if generation < self.generation {
            return;
        }
        let bytes = look.bytes();
        if generation > self.generation || self.bytes + bytes > MOST {
            self.decisions.clear();
            self.bytes = 0;
            self.generation = generation;
        }
        if self.decisions.insert(look, decision.clone()).is_none() {
            self.bytes += bytes;
        }
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
}
