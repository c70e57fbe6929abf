//! The director: turns what sources report into the picture that doors read.
//!
//! It is the only writer, of the rules too. A decision is made when a pod changes, and the session
//! it needs is leased at that moment, before the pod asks. A change of the rules only makes a new
//! generation of them; what it touches is decided again in small portions, or when it asks.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_core::arn::BaseArn;
use rolegate_core::rulebook::{Facts, RuleUpdate, Touched};
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_rules::keeper::{Keeper, Report};
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use rolegate_standing::decider::Decider;
use rolegate_standing::resident::{Resident, Standing};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::guard::Guard;
use crate::metrics::AgentMetrics;
use crate::picture::Picture;
use crate::roster::Roster;

/// Pods that are decided again in one go, between which reports are taken.
const PORTION: usize = 128;

/// What a director works with.
#[derive(Debug)]
pub struct DirectorParts {
    /// Where it writes.
    pub picture: Arc<Picture>,
    /// What decides by the rules.
    pub decider: Decider,
    /// Counts pods.
    pub metrics: AgentMetrics,
    /// Told which pods are where.
    pub guard: Guard,
    /// The rules.
    pub keeper: Keeper,
}

/// What keeps the process from being ready, and decisions from being final.
#[derive(Debug)]
struct Missing {
    workloads: Option<Block>,
    rules: Condition,
}

/// Writes the picture.
#[derive(Debug)]
pub struct Director {
    picture: Arc<Picture>,
    decider: Decider,
    keeper: Keeper,
    roster: Roster,
    /// UIDs of those that the rules' last changes touched, each once, and whether what STS refused
    /// them is worth another try.
    touched: BTreeMap<Arc<str>, bool>,
    missing: Missing,
}

impl Director {
    /// A director for an empty picture.
    pub fn new(parts: DirectorParts, readiness: &Readiness) -> Self {
        let rules = readiness.condition("rules");
        rules.fail("rules are not loaded");
        Self {
            picture: parts.picture.clone(),
            decider: parts.decider,
            keeper: parts.keeper,
            roster: Roster::new(parts.picture, parts.guard, parts.metrics),
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
                // What sources say goes before what only waits to be brought up to date.
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

    /// Takes what a source says of the rules.
    pub fn report(&mut self, report: Report) {
        // Policies' data changes with every namespace of the cluster: no reason to ask STS again.
        let retry = matches!(report, Report::Rules(_));
        let touched = self.keeper.apply(report);
        self.rules_changed(&touched, retry);
    }

    /// Takes one report of a source.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                let kept: HashSet<_> = all.iter().map(|pod| pod.uid.clone()).collect();
                let mut touched = HashSet::new();
                self.roster.keep(|uid| kept.contains(uid), &mut touched);
                for pod in all {
                    self.apply(pod, &mut touched);
                }
                self.roster.publish(touched);
                self.missing.workloads = None;
            }
            Update::Workloads(Change::Apply(pod)) => {
                let mut touched = HashSet::new();
                self.apply(pod, &mut touched);
                self.roster.publish(touched);
            }
            Update::Workloads(Change::Delete(pod)) => {
                let mut touched = HashSet::new();
                self.roster.remove(&pod.uid, &mut touched);
                self.roster.publish(touched);
            }
            Update::RetainWorkloads(uids) => {
                let mut touched = HashSet::new();
                self.roster.keep(|uid| uids.contains(uid), &mut touched);
                self.roster.publish(touched);
            }
            Update::Namespaces(change) => {
                self.report(Report::Rules(RuleUpdate::Namespaces(change)));
            }
            Update::RetainNamespaces(names) => {
                self.report(Report::Rules(RuleUpdate::RetainNamespaces(names)));
            }
        }
        self.settle();
    }

    /// Takes what was found out about where we run.
    pub fn learn(&mut self, facts: Facts) {
        info!(
            base = facts.base.as_ref().map(BaseArn::as_str),
            own_roles = list(facts.own_roles.iter().map(|own| &own.name)),
            "our AWS identity is known"
        );
        self.keeper.learn(facts);
        self.rules_changed(&Touched::All, true);
    }

    fn rules_changed(&mut self, touched: &Touched, retry: bool) {
        for pod in self.roster.residents() {
            if touched.includes(&pod.workload.namespace) {
                let again = self.touched.entry(pod.workload.uid.clone());
                *again.or_default() |= retry;
            }
        }
        self.settle();
        if *touched != Touched::Nothing {
            self.picture.touch();
        }
    }

    fn settle(&mut self) {
        let unseen = self.keeper.unseen();
        match (unseen, self.keeper.missing()) {
            (Some(unseen), _) => self.missing.rules.fail(unseen),
            (None, Some(missing)) => self.missing.rules.fail(&*missing),
            (None, None) => self.missing.rules.ok(),
        }
        self.picture
            .settle(self.missing.workloads.is_none() && unseen.is_none());
    }

    /// Brings some of the pods up to date that the rules' changes touched: sessions that are no
    /// longer anybody's right end, and those that are now are fetched before they are asked for.
    fn catch_up(&mut self) {
        for _ in 0..PORTION {
            let Some((uid, retry)) = self.touched.pop_first() else {
                return;
            };
            let Some(resident) = self.roster.get(&uid) else {
                continue;
            };
            let decided = self.decider.standing(resident, self.decider.now());
            if let (true, Standing::Allowed(allowed)) = (retry, &decided.standing) {
                allowed.lease.retry();
            }
        }
    }

    fn apply(&mut self, pod: Workload, touched: &mut HashSet<IpAddr>) {
        let before = self.roster.get(&pod.uid).cloned();
        if before.as_ref().is_some_and(|known| *known.workload == pod) {
            return;
        }
        let resident = self.resident(pod, before.as_deref());
        self.roster.put(resident, touched);
    }

    fn resident(&self, workload: Workload, before: Option<&Resident>) -> Arc<Resident> {
        let before = before.map(|resident| resident.decided.load());
        let decided = self
            .decider
            .decide(&workload, before.as_ref().map(|it| &***it));
        if let Standing::Allowed(allowed) = &decided.standing {
            // The pod changed, which is why we decide: what STS refused is worth another try.
            allowed.lease.retry();
        }
        Arc::new(Resident::new(Arc::new(workload), decided))
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
