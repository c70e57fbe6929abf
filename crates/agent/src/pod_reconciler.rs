//! The pod reconciler: applies the events of sources to the pod table.
//!
//! It is the only writer of the pod table and of the rules. It decides when a pod changes, and
//! leases the session at that moment, before the pod requests it. A rule change only creates a new
//! generation. The affected pods are decided again in small batches, or on their next request.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::pod::{Authorization, PodEntry};
use rolegate_core::arn::BaseArn;
use rolegate_core::rule_set_builder::{Facts, Invalidated, RuleUpdate};
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::address_verifier::AddressVerifier;
use crate::metrics::AgentMetrics;
use crate::pod_table::PodTable;
use crate::pod_table::writer::PodTableWriter;

/// Number of pods that are decided again in one batch. Events are handled between batches.
const BATCH_SIZE: usize = 128;

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

/// The readiness conditions that also keep decisions from being final.
#[derive(Debug)]
struct Missing {
    workloads: Option<Block>,
    rules: Condition,
}

/// The writer of the pod table.
#[derive(Debug)]
pub struct PodReconciler {
    pod_table: Arc<PodTable>,
    authorizer: Authorizer,
    writer: RuleStoreWriter,
    pods: PodTableWriter,
    /// UIDs of the pods that the last rule changes affect, and whether a request that STS refused
    /// should be retried.
    touched: BTreeMap<Arc<str>, bool>,
    missing: Missing,
}

impl PodReconciler {
    /// Creates a pod reconciler for an empty pod table.
    pub fn new(parts: PodReconcilerParts, readiness: &Readiness) -> Self {
        let rules = readiness.condition("rules");
        rules.fail("rules are not loaded");
        Self {
            pod_table: parts.pod_table.clone(),
            authorizer: parts.authorizer,
            writer: parts.writer,
            pods: PodTableWriter::new(parts.pod_table, parts.verifier, parts.metrics),
            touched: BTreeMap::new(),
            missing: Missing {
                workloads: Some(readiness.block("workloads are not loaded")),
                rules,
            },
        }
    }

    /// Follows the sources until they end.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut reports: mpsc::Receiver<Report>,
        mut facts: watch::Receiver<Option<Facts>>,
    ) {
        loop {
            tokio::select! {
                // Events of sources take precedence over re-evaluation.
                biased;
                Ok(()) = facts.changed() => {
                    let learned = facts.borrow_and_update().clone();
                    if let Some(learned) = learned {
                        self.learn(learned);
                    }
                }
                Some(report) = reports.recv() => self.report(report),
                update = updates.recv() => match update {
                    Some(update) => self.update(update),
                    None => return,
                },
                () = tokio::task::yield_now(), if !self.touched.is_empty() => self.catch_up(),
            }
        }
    }

    /// Applies an event of a rule source.
    pub fn report(&mut self, report: Report) {
        // Policy data changes with every namespace of the cluster, which is no reason to retry STS.
        let retry = matches!(report, Report::RuleStore(_));
        let touched = self.writer.apply(report);
        self.rules_changed(&touched, retry);
    }

    /// Applies an event of a source.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                let kept: HashSet<_> = all.iter().map(|pod| pod.uid.clone()).collect();
                let mut touched = HashSet::new();
                self.pods.keep(|uid| kept.contains(uid), &mut touched);
                for pod in all {
                    self.apply(pod, &mut touched);
                }
                self.pods.publish(touched);
                self.missing.workloads = None;
            }
            Update::Workloads(Change::Apply(pod)) => {
                let mut touched = HashSet::new();
                self.apply(pod, &mut touched);
                self.pods.publish(touched);
            }
            Update::Workloads(Change::Delete(pod)) => {
                let mut touched = HashSet::new();
                self.pods.remove(&pod.uid, &mut touched);
                self.pods.publish(touched);
            }
            Update::RetainWorkloads(uids) => {
                let mut touched = HashSet::new();
                self.pods.keep(|uid| uids.contains(uid), &mut touched);
                self.pods.publish(touched);
            }
            Update::Namespaces(change) => {
                self.report(Report::RuleStore(RuleUpdate::Namespaces(change)));
            }
            Update::RetainNamespaces(names) => {
                self.report(Report::RuleStore(RuleUpdate::RetainNamespaces(names)));
            }
        }
        self.settle();
    }

    /// Applies discovered facts about the AWS environment.
    pub fn learn(&mut self, facts: Facts) {
        info!(
            base = facts.base.as_ref().map(BaseArn::as_str),
            reserved_roles = list(facts.reserved_roles.iter().map(|own| &own.name)),
            "our AWS identity is known"
        );
        self.writer.learn(facts);
        self.rules_changed(&Invalidated::All, true);
    }

    fn rules_changed(&mut self, touched: &Invalidated, retry: bool) {
        for pod in self.pods.pods() {
            if touched.includes(&pod.workload.namespace) {
                let again = self.touched.entry(pod.workload.uid.clone());
                *again.or_default() |= retry;
            }
        }
        self.settle();
        if *touched != Invalidated::Nothing {
            self.pod_table.touch();
        }
    }

    fn settle(&mut self) {
        let unseen = self.writer.unseen();
        match (unseen, self.writer.missing()) {
            (Some(unseen), _) => self.missing.rules.fail(unseen.as_str()),
            (None, Some(missing)) => self.missing.rules.fail(&*missing),
            (None, None) => self.missing.rules.ok(),
        }
        self.pod_table
            .settle(self.missing.workloads.is_none() && unseen.is_none());
    }

    /// Re-evaluates some of the pods that rule changes affect. Sessions that are no longer allowed
    /// end, and those that are now allowed are fetched before a request.
    fn catch_up(&mut self) {
        for _ in 0..BATCH_SIZE {
            let Some((uid, retry)) = self.touched.pop_first() else {
                return;
            };
            let Some(entry) = self.pods.get(&uid) else {
                continue;
            };
            let decided = self.authorizer.authorization(entry, self.authorizer.now());
            if let (true, Authorization::Allowed(allowed)) = (retry, &decided.authorization) {
                allowed.lease.retry();
            }
        }
    }

    fn apply(&mut self, pod: Workload, touched: &mut HashSet<IpAddr>) {
        let before = self.pods.get(&pod.uid).cloned();
        if before.as_ref().is_some_and(|known| *known.workload == pod) {
            return;
        }
        let entry = self.entry(pod, before.as_deref());
        self.pods.put(entry, touched);
    }

    fn entry(&self, workload: Workload, before: Option<&PodEntry>) -> Arc<PodEntry> {
        let before = before.map(|entry| entry.decided.load());
        let decided = self
            .authorizer
            .decide(&workload, before.as_ref().map(|it| &***it));
        if let Authorization::Allowed(allowed) = &decided.authorization {
            // The pod changed, so a request that STS refused should be retried.
            allowed.lease.retry();
        }
        Arc::new(PodEntry::new(Arc::new(workload), decided))
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
