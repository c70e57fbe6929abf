//! The pod reconciler: applies the events of sources to the pod table.
//!
//! It is the only writer of the pod table and of the rules. It decides when a pod changes, and
//! leases the session at that moment, before the pod requests it. A rule change only creates a new
//! generation. The affected pods are decided again in small batches, or on their next request.

use std::collections::HashSet;
use std::sync::Arc;

use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::pod::{Authorization, PodEntry};
use rolegate_authorizer::reconciler::{
    BATCH_SIZE, MissingRules, Reconciler, ReconcilerState, Sources,
};
use rolegate_authorizer::work_queue::Reason;
use rolegate_core::rule_set_builder::Invalidated;
use rolegate_core::workload::Workload;
use rolegate_rules::store::RuleStoreWriter;
use rolegate_runtime::readiness::Readiness;

use crate::address_verifier::AddressVerifier;
use crate::metrics::AgentMetrics;
use crate::pod_table::PodTable;
use crate::pod_table::writer::PodTableWriter;

/// The parts that a pod reconciler uses.
#[derive(Debug)]
pub struct PodReconcilerParts {
    /// The pod table that it writes.
    pub pod_table: Arc<PodTable>,
    /// The authorizer that decides.
    pub authorizer: Authorizer,
    /// The metrics of pods.
    pub metrics: AgentMetrics,
    /// The verifier, which it informs about pods' addresses.
    pub verifier: AddressVerifier,
    /// The writer of the rules.
    pub writer: RuleStoreWriter,
}

/// The writer of the pod table.
#[derive(Debug)]
pub struct PodReconciler {
    pod_table: Arc<PodTable>,
    authorizer: Authorizer,
    state: ReconcilerState,
    pods: PodTableWriter,
}

impl PodReconciler {
    /// Creates a pod reconciler for an empty pod table.
    pub fn new(parts: PodReconcilerParts, readiness: &Readiness) -> Self {
        Self {
            pod_table: parts.pod_table.clone(),
            authorizer: parts.authorizer,
            state: ReconcilerState::new(parts.writer, readiness, MissingRules::NotReady),
            pods: PodTableWriter::new(parts.pod_table, parts.verifier, parts.metrics),
        }
    }

    /// Follows the sources until they end.
    pub async fn run(mut self, mut sources: Sources) {
        loop {
            tokio::select! {
                // Events of sources take precedence over queued pods.
                biased;
                event = sources.next() => match event {
                    Some(event) => self.event(event),
                    None => return,
                },
                () = tokio::task::yield_now(), if !self.state.is_idle() => {
                    self.reconcile_batch(BATCH_SIZE);
                }
            }
        }
    }
}

impl Reconciler for PodReconciler {
    fn state(&mut self) -> &mut ReconcilerState {
        &mut self.state
    }

    fn apply(&mut self, pod: Workload) {
        let before = self.pods.get(&pod.uid).cloned();
        if before.as_ref().is_some_and(|known| *known.workload == pod) {
            return;
        }
        let assigned = before.as_ref().and_then(|entry| entry.assigned.load_full());
        let before = before.as_ref().map(|entry| entry.decided.load());
        let pod = Arc::new(pod);
        let decided = self
            .authorizer
            .decide(&pod, before.as_ref().map(|it| &***it));
        if let Authorization::Allowed(allowed) = &decided.authorization {
            // The pod changed, so a request that STS refused should be retried.
            allowed.lease.retry();
        }
        let assigned = self.authorizer.assign_roles(&pod, assigned.as_deref());
        let entry = PodEntry::new(pod, decided);
        entry.assigned.store(assigned.map(Arc::new));
        self.pods.put(Arc::new(entry));
    }

    fn remove(&mut self, uid: &Arc<str>) {
        self.pods.remove(uid);
    }

    fn retain(&mut self, uids: &HashSet<Arc<str>>) {
        self.pods.keep(|uid| uids.contains(uid));
    }

    fn affected(&self, change: &Invalidated) -> Vec<Arc<str>> {
        self.pods
            .pods()
            .filter(|pod| change.includes(&pod.workload))
            .map(|pod| pod.workload.uid.clone())
            .collect()
    }

    /// Decides again for a pod. A session that is no longer allowed ends, and one that is now
    /// allowed is fetched before a request.
    fn reconcile(&mut self, uid: &Arc<str>, reason: Reason) {
        let Some(entry) = self.pods.get(uid) else {
            return;
        };
        let now = self.authorizer.now();
        let decided = self.authorizer.authorization(entry, now);
        if let (Reason::Retry, Authorization::Allowed(allowed)) = (reason, &decided.authorization) {
            allowed.lease.retry();
        }
        let retry = reason == Reason::Retry;
        self.authorizer.refresh_assigned(entry, now, retry);
    }

    fn publish(&mut self) {
        self.pods.publish();
    }

    fn rules_changed(&mut self) {
        self.pod_table.touch();
    }

    fn synced_changed(&mut self, synced: bool) {
        self.pod_table.set_synced(synced);
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
