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
    /// True if there were more labels, or annotations, than are kept: such a pod is refused,
    /// whatever layers read.
    too_large: (bool, bool),
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
        too_large: (
            workload.labels.is_too_large(),
            workload.annotations.is_too_large(),
        ),
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
mod tests;
