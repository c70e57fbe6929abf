//! The reconciler: applies the events of sources to the pods of a process, and decides again for the
//! pods that a rule change affects.
//!
//! Agents and brokers keep different tables of pods, and implement [`Reconciler`] for them. A rule
//! change only creates a new generation and queues the affected pods, which are decided again in
//! batches. Between batches the process reads its sources, so that a revocation never waits for
//! earlier work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rolegate_core::arn::BaseArn;
use rolegate_core::rule_set_builder::{AwsEnvironment, Invalidated, RuleUpdate};
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::work_queue::{Reason, WorkQueue};

/// Maximum number of pods decided in one batch.
pub const BATCH_SIZE: usize = 128;
/// Time limit of a batch. The last pod may exceed it, since policies can be slow.
const MAX_BATCH_TIME: Duration = Duration::from_millis(50);

/// Maximum number of rule changes that are applied before a waiting change of a pod.
const MAX_CONSECUTIVE_REPORTS: u32 = 32;

/// The sources of a reconciler.
#[derive(Debug)]
pub struct Sources {
    updates: mpsc::Receiver<Update>,
    reports: mpsc::Receiver<Report>,
    aws_environment: watch::Receiver<Option<AwsEnvironment>>,
    consecutive_reports: u32,
}

/// An event of a source.
#[derive(Debug)]
pub enum Event {
    /// The AWS environment was detected, or has changed.
    AwsEnvironment(AwsEnvironment),
    /// The rules have changed.
    Report(Report),
    /// A pod or namespace has changed.
    Update(Update),
}

impl Sources {
    /// Creates sources: changes of pods and namespaces, changes of rules, and the AWS environment
    /// once it is detected.
    pub fn new(
        updates: mpsc::Receiver<Update>,
        reports: mpsc::Receiver<Report>,
        aws_environment: watch::Receiver<Option<AwsEnvironment>>,
    ) -> Self {
        Self {
            updates,
            reports,
            aws_environment,
            consecutive_reports: 0,
        }
    }

    /// Returns the next event: the AWS environment before rules, and rules before pods, but no more
    /// than `MAX_CONSECUTIVE_REPORTS` rule changes while a pod waits. Otherwise a user who keeps
    /// changing a namespace could keep deleted pods in the table. Returns `None` if the source of
    /// pods has exited. Cancelling the call loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let pods_are_due = self.consecutive_reports >= MAX_CONSECUTIVE_REPORTS;
            if pods_are_due {
                self.consecutive_reports = 0;
                if let Ok(update) = self.updates.try_recv() {
                    return Some(Event::Update(update));
                }
            }
            tokio::select! {
                biased;
                Ok(()) = self.aws_environment.changed() => {
                    if let Some(aws_environment) = self.aws_environment.borrow_and_update().clone() {
                        return Some(Event::AwsEnvironment(aws_environment));
                    }
                }
                Some(report) = self.reports.recv() => {
                    self.consecutive_reports += 1;
                    return Some(Event::Report(report));
                }
                update = self.updates.recv() => {
                    self.consecutive_reports = 0;
                    return update.map(Event::Update);
                }
            }
        }
    }
}

/// The effect of missing rules on readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRules {
    /// The process is not ready.
    NotReady,
    /// The process is ready and denies every request, and readiness contains a note.
    Note,
}

/// The state of a reconciler: the rules, the queue of pods whose decision may be outdated, and
/// whether all sources have synced.
#[derive(Debug)]
pub struct ReconcilerState {
    writer: RuleStoreWriter,
    queue: WorkQueue,
    workloads: Option<Block>,
    rules: Condition,
    missing_rules: MissingRules,
}

impl ReconcilerState {
    /// Creates the state before any source has synced.
    pub fn new(
        writer: RuleStoreWriter,
        readiness: &Readiness,
        missing_rules: MissingRules,
    ) -> Self {
        let rules = readiness.condition("rules");
        rules.fail("rules are not loaded");
        Self {
            writer,
            queue: WorkQueue::default(),
            workloads: Some(readiness.block("workloads are not loaded")),
            rules,
            missing_rules,
        }
    }

    /// Queues a pod by its UID.
    pub fn queue(&mut self, uid: Arc<str>, reason: Reason) {
        self.queue.add(uid, reason);
    }

    /// Removes and returns the next queued pod.
    pub fn next_queued(&mut self) -> Option<(Arc<str>, Reason)> {
        self.queue.take()
    }

    /// Returns the writer of the rules. A change through it does not queue the affected pods; the
    /// caller must do that.
    pub fn writer(&mut self) -> &mut RuleStoreWriter {
        &mut self.writer
    }

    /// Returns true if no pod is queued.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns true if pods, rules and the AWS environment have synced. No decision is final before.
    pub fn has_synced(&self) -> bool {
        self.workloads.is_none() && self.writer.not_synced().is_none()
    }

    /// Updates the readiness condition `rules`.
    fn report_readiness(&self) {
        match (self.writer.not_synced(), self.writer.missing()) {
            (Some(part), _) => self.rules.fail(part.as_str()),
            (None, Some(missing)) => match self.missing_rules {
                MissingRules::NotReady => self.rules.fail(&*missing),
                MissingRules::Note => self.rules.note(&*missing),
            },
            (None, None) => self.rules.ok(),
        }
    }
}

/// A table of pods that follows the sources of a process.
pub trait Reconciler {
    /// Returns the state.
    fn state(&mut self) -> &mut ReconcilerState;

    /// Adds a pod or replaces it.
    fn apply(&mut self, pod: Workload);

    /// Removes a pod.
    fn remove(&mut self, uid: &Arc<str>);

    /// Removes all pods except these.
    fn retain(&mut self, uids: &HashSet<Arc<str>>);

    /// Returns the UIDs of the pods that a rule change affects.
    fn affected(&self, change: &Invalidated) -> Vec<Arc<str>>;

    /// Decides again for a queued pod.
    fn reconcile(&mut self, uid: &Arc<str>, reason: Reason);

    /// Publishes the changes of one update.
    fn publish(&mut self) {}

    /// Handles a new generation of the rules, after the affected pods were queued.
    fn rules_changed(&mut self) {}

    /// Handles a possible change of [`ReconcilerState::has_synced`].
    fn synced_changed(&mut self, synced: bool);

    /// Applies an event of a source.
    fn event(&mut self, event: Event) {
        match event {
            Event::AwsEnvironment(aws_environment) => self.set_aws_environment(aws_environment),
            Event::Report(report) => self.report(report),
            Event::Update(update) => self.update(update),
        }
    }

    /// Sets the AWS environment.
    fn set_aws_environment(&mut self, aws_environment: AwsEnvironment) {
        info!(
            base = aws_environment.base.as_ref().map(BaseArn::as_str),
            reserved_roles = list(aws_environment.reserved_roles.iter().map(|own| &own.name)),
            "detected the AWS environment"
        );
        self.state().writer.set_aws_environment(aws_environment);
        self.queue_affected(&Invalidated::All, Reason::Retry);
    }

    /// Applies a change of the rules.
    fn report(&mut self, report: Report) {
        let reason = match report {
            Report::Rules(_) | Report::ServiceAccounts(_) => Reason::Retry,
            // Policy data changes with every namespace, which is not a reason to call STS again.
            Report::ConfigMaps(..) | Report::Replicated(..) | Report::Unwatched(_) => {
                Reason::Changed
            }
        };
        let change = self.state().writer.apply(report);
        self.queue_affected(&change, reason);
    }

    /// Applies a change of a pod or namespace.
    fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                self.retain(&all.iter().map(|pod| pod.uid.clone()).collect());
                for pod in all {
                    self.apply(pod);
                }
                self.publish();
                self.state().workloads = None;
            }
            Update::Workloads(Change::Apply(pod)) => {
                self.apply(pod);
                self.publish();
            }
            Update::Workloads(Change::Delete(pod)) => {
                self.remove(&pod.uid);
                self.publish();
            }
            Update::RetainWorkloads(uids) => {
                self.retain(&uids);
                self.publish();
            }
            Update::Namespaces(change) => {
                self.report(Report::Rules(RuleUpdate::Namespaces(change)));
            }
            Update::RetainNamespaces(names) => {
                self.report(Report::Rules(RuleUpdate::RetainNamespaces(names)));
            }
        }
        self.update_synced();
    }

    /// Queues the pods that a rule change affects.
    fn queue_affected(&mut self, change: &Invalidated, reason: Reason) {
        let changed = *change != Invalidated::Nothing;
        if changed {
            for uid in self.affected(change) {
                self.state().queue(uid, reason);
            }
        }
        self.update_synced();
        if changed {
            self.rules_changed();
        }
    }

    /// Updates everything that depends on whether all sources have synced.
    fn update_synced(&mut self) {
        let state = self.state();
        state.report_readiness();
        let synced = state.has_synced();
        self.synced_changed(synced);
    }

    /// Decides again for up to `limit` queued pods.
    fn reconcile_batch(&mut self, limit: usize) {
        let began = Instant::now();
        for _ in 0..limit {
            let Some((uid, reason)) = self.state().next_queued() else {
                return;
            };
            self.reconcile(&uid, reason);
            if began.elapsed() >= MAX_BATCH_TIME {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pods_are_reached_while_rules_keep_changing() {
        let (pods, updates) = mpsc::channel(1);
        let (rules, reports) = mpsc::channel(1);
        let (_keep, aws_environment) = watch::channel(None);
        let mut sources = Sources::new(updates, reports, aws_environment);
        pods.send(Update::RetainWorkloads(HashSet::new()))
            .await
            .unwrap();
        let mut reports_before = 0;
        loop {
            let none = RuleUpdate::RetainNamespaces(HashSet::new());
            let _ = rules.try_send(Report::Rules(none));
            match sources.next().await {
                Some(Event::Update(_)) => break,
                Some(Event::Report(_)) => reports_before += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reports_before, MAX_CONSECUTIVE_REPORTS);
    }
}
