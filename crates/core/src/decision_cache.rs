//! A cache of decisions, shared by workloads that are identical to the rules, such as the pods of a
//! Deployment.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};

use crate::decision::{Decision, RuleSet};
use crate::labels::Labels;
use crate::layer::WorkloadFields;
use crate::session_name::SessionScope;
use crate::workload::{RoleRequest, Workload};

/// Maximum size of the cached decisions, in bytes (estimated). When it is exceeded, the cache is
/// cleared.
const MAX_CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Estimated size of a cached decision in addition to the workload's strings, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 1024;

/// The cache key: the parts of a workload that the rules can read.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    namespace: Arc<str>,
    service_account: Arc<str>,
    role_request: RoleRequest,
    mirror: bool,
    /// Name and UID, if the session is the pod's own or a layer reads them.
    pod: Option<(Arc<str>, Arc<str>)>,
    /// True if the pod had more labels, or annotations, than are stored. Such a pod is denied
    /// regardless of the fields that layers read.
    too_large: (bool, bool),
    labels: Option<Labels>,
    identity: Option<Identity>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    node: Option<Arc<str>>,
    host_network: bool,
    annotations: Labels,
}

impl CacheKey {
    /// Returns the estimated size of the entry, in bytes. The decision repeats the strings of the
    /// request.
    fn bytes(&self) -> usize {
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let pairs = |values: &Labels| -> usize {
            let each = values.iter().map(|(key, value)| key.len() + value.len());
            each.sum()
        };
        let request = &self.role_request;
        let requested =
            text(&request.role) + text(&request.external_id) + text(&request.session_name);
        let labels = self.labels.as_ref().map_or(0, pairs);
        let annotations = self
            .identity
            .as_ref()
            .map_or(0, |identity| pairs(&identity.annotations));
        ENTRY_OVERHEAD_BYTES + 2 * requested + labels + annotations
    }
}

/// A thread-safe cache of decisions for one generation of the rules.
#[derive(Debug, Default)]
pub struct DecisionCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    generation: u64,
    bytes: usize,
    decisions: HashMap<CacheKey, Decision>,
}

impl DecisionCache {
    /// Decides as [`RuleSet::decide`] does, and caches the result. Concurrent callers with the same
    /// key may each evaluate the rules, since a lookup never waits for an evaluation.
    pub fn decide(&self, rules: &RuleSet, workload: &Workload, now: Timestamp) -> Decision {
        if rules.reads_time() {
            return rules.decide(workload, now);
        }
        let key = cache_key(rules, workload);
        {
            let entries = self.lock();
            let known = entries.decisions.get(&key);
            if let Some(decision) = known.filter(|_| entries.generation == rules.generation) {
                return decision.clone();
            }
        }
        let decision = rules.decide(workload, now);
        if !decision.is_transient() {
            self.lock().insert(rules.generation, key, &decision);
        }
        decision
    }

    /// Returns the number of cached decisions.
    pub fn len(&self) -> usize {
        self.lock().decisions.len()
    }

    /// Returns true if the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock()
    }
}

impl Entries {
    fn insert(&mut self, generation: u64, key: CacheKey, decision: &Decision) {
        // A decision by an older generation is not cached.
        if generation < self.generation {
            return;
        }
        let bytes = key.bytes();
        if generation > self.generation || self.bytes + bytes > MAX_CACHE_BYTES {
            self.decisions.clear();
            self.bytes = 0;
            self.generation = generation;
        }
        if self.decisions.insert(key, decision.clone()).is_none() {
            self.bytes += bytes;
        }
    }
}

fn cache_key(rules: &RuleSet, workload: &Workload) -> CacheKey {
    let mut reads = WorkloadFields::default();
    for active in &rules.layers {
        let layer = active.layer.reads();
        reads.labels |= layer.labels;
        reads.pod |= layer.pod;
        reads.identity |= layer.identity;
    }
    let scope = rules.attribution.scope(rules.scope);
    let own = reads.pod || reads.identity || scope == SessionScope::Pod;
    CacheKey {
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        role_request: workload.role_request.clone(),
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
