//! The desk: the one task that knows all pods and writes what each stream's agent should know.
//!
//! It decides for the pods of nodes that a stream serves, and for no others; so sessions are held
//! for those alone. A change of the rules, and the pods of a stream that begins, are worked off in
//! portions, between which reports are taken.

mod claims;
mod pending;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rolegate_core::arn::BaseArn;
use rolegate_core::rulebook::{Facts, RuleUpdate, Touched};
use rolegate_core::session::SessionKey;
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_rules::keeper::{Keeper, Report};
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Block, Condition, Readiness};
use rolegate_standing::decider::Decider;
use rolegate_standing::resident::Standing;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::agents::Agents;
use crate::feed::{Feed, Put};
use crate::hosts::Hosts;
use crate::metrics::BrokerMetrics;
use claims::Claims;
use pending::{Pending, Reason};

/// Pods that are decided in one go.
const PORTION: usize = 128;
/// The same with each order of a stream.
const BESIDE: usize = 8;
/// How long one go may take, but for the last pod of it: policies may take their time.
const LONGEST: Duration = Duration::from_millis(50);
/// How often verdicts are made again that count for a time only.
const TIMELY: Duration = Duration::from_secs(15);

/// What streams ask of the desk.
#[derive(Debug)]
pub enum Order {
    /// A stream was proven: it is to end with its agent's pod.
    Join(Arc<Feed>),
    /// Its agent serves pods by it from now on.
    Begin(Arc<Feed>),
    /// It ended.
    Leave(Arc<Feed>),
}

/// What a desk works with.
#[derive(Debug)]
pub struct DeskParts {
    /// The rules.
    pub keeper: Keeper,
    /// What decides by them.
    pub decider: Decider,
    /// The agents' pods.
    pub agents: Agents,
    /// The nodes' addresses, where kiam's agents are served.
    pub hosts: Option<Hosts>,
    /// Counts.
    pub metrics: BrokerMetrics,
}

/// What a desk hears.
#[derive(Debug)]
pub struct Sources {
    /// About pods and namespaces.
    pub updates: mpsc::Receiver<Update>,
    /// About rules.
    pub reports: mpsc::Receiver<Report>,
    /// About where we run.
    pub facts: watch::Receiver<Option<Facts>>,
    /// From streams.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Sessions that changed.
    pub sessions: mpsc::UnboundedReceiver<Arc<SessionKey>>,
}

#[derive(Debug, Default)]
struct Node {
    pods: HashSet<Arc<str>>,
    /// Streams by which pods are served. There are two for a moment when one agent follows another.
    feeds: Vec<Arc<Feed>>,
}

/// Writes the feeds.
#[derive(Debug)]
pub struct Desk {
    keeper: Keeper,
    decider: Decider,
    agents: Agents,
    hosts: Option<Hosts>,
    metrics: BrokerMetrics,
    /// By UID.
    pods: HashMap<Arc<str>, Arc<Workload>>,
    nodes: HashMap<Arc<str>, Node>,
    /// All streams that were proven.
    joined: Vec<Arc<Feed>>,
    /// How many of them serve.
    serving: usize,
    claims: Claims,
    /// Which streams use a session.
    users: HashMap<Arc<SessionKey>, Vec<Weak<Feed>>>,
    pending: Pending,
    /// Pods whose verdict counts for a time only: it reads the time, or a policy was not done.
    timely: HashSet<Arc<str>>,
    workloads: Option<Block>,
    /// Whether all that feeds must have to be complete was known at the last change.
    settled: bool,
    rules: Condition,
}

impl Desk {
    /// A desk that knows nothing.
    pub fn new(parts: DeskParts, readiness: &Readiness) -> Self {
        let rules = readiness.condition("rules");
        rules.fail("rules are not loaded");
        Self {
            keeper: parts.keeper,
            decider: parts.decider,
            agents: parts.agents,
            hosts: parts.hosts,
            metrics: parts.metrics,
            pods: HashMap::new(),
            nodes: HashMap::new(),
            joined: Vec::new(),
            serving: 0,
            claims: Claims::default(),
            users: HashMap::new(),
            pending: Pending::default(),
            timely: HashSet::new(),
            workloads: Some(readiness.block("workloads are not loaded")),
            settled: false,
            rules,
        }
    }

    /// Follows the sources until they end.
    pub async fn run(mut self, mut sources: Sources) {
        let mut timely = tokio::time::interval(TIMELY);
        loop {
            tokio::select! {
                // What sources say goes before what streams ask, which any node can do at any rate,
                // and before what only waits to be brought up to date.
                biased;
                Ok(()) = sources.facts.changed() => {
                    let learned = sources.facts.borrow_and_update().clone();
                    if let Some(learned) = learned {
                        self.learn(learned);
                    }
                }
                Some(report) = sources.reports.recv() => self.report(report),
                Some(key) = sources.sessions.recv() => self.session_changed(&key),
                update = sources.updates.recv() => match update {
                    Some(update) => self.update(update),
                    None => return,
                },
                _ = timely.tick() => self.time_went_by(),
                Some(order) = sources.orders.recv() => {
                    self.order(order);
                    // A node whose streams come and go without end holds up no withdrawal.
                    self.catch_up(BESIDE);
                }
                () = tokio::task::yield_now(), if !self.pending.is_empty() => {
                    self.catch_up(PORTION);
                }
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

    /// Takes one report of a source.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                let uids = all.iter().map(|pod| pod.uid.clone()).collect();
                self.retain(&uids);
                for pod in all {
                    self.apply(pod);
                }
                self.workloads = None;
            }
            Update::Workloads(Change::Apply(pod)) => self.apply(pod),
            Update::Workloads(Change::Delete(pod)) => self.remove(&pod.uid),
            Update::RetainWorkloads(uids) => self.retain(&uids),
            Update::Namespaces(change) => {
                self.report(Report::Rules(RuleUpdate::Namespaces(change)));
            }
            Update::RetainNamespaces(names) => {
                self.report(Report::Rules(RuleUpdate::RetainNamespaces(names)));
            }
        }
        self.settle();
    }

    /// All pods but these are gone.
    fn retain(&mut self, uids: &HashSet<Arc<str>>) {
        let gone = self.pods.keys().filter(|uid| !uids.contains(*uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.remove(&uid);
        }
    }

    /// Takes what a stream asks.
    pub fn order(&mut self, order: Order) {
        match order {
            Order::Join(feed) => {
                // Its pod may have gone between the proof and this.
                let gone = |uid: &Arc<str>| self.agents.get(uid).is_none();
                if feed.pod_uid.as_ref().is_some_and(gone) {
                    feed.closed.cancel();
                    return;
                }
                self.joined.push(feed);
            }
            Order::Begin(feed) => {
                let node = self.nodes.entry(feed.node.clone()).or_default();
                node.feeds.push(feed.clone());
                self.serving += 1;
                self.begin_round(&feed);
            }
            Order::Leave(feed) => {
                self.joined.retain(|other| !Arc::ptr_eq(other, &feed));
                if let Some(node) = self.nodes.get_mut(&feed.node) {
                    let before = node.feeds.len();
                    node.feeds.retain(|other| !Arc::ptr_eq(other, &feed));
                    self.serving -= before - node.feeds.len();
                    if node.feeds.is_empty() && node.pods.is_empty() {
                        self.nodes.remove(&feed.node);
                    }
                }
                for key in feed.sessions() {
                    self.leave_session(&key, &feed);
                }
            }
        }
        self.metrics.set_streams(self.serving, self.joined.len());
    }

    /// Has all pods of the node decided for a feed, after which it is complete.
    fn begin_round(&mut self, feed: &Feed) {
        let node = self.nodes.get(&feed.node);
        let pods = node.map(|node| node.pods.clone()).unwrap_or_default();
        for uid in &pods {
            self.pending.touch(uid.clone(), Reason::Begun);
        }
        feed.expect(pods);
        self.complete(feed);
    }

    /// Completes a feed if all is known and decided.
    fn complete(&self, feed: &Feed) {
        if self.settled {
            feed.complete();
        }
    }

    fn rules_changed(&mut self, touched: &Touched, retry: bool) {
        let reason = match retry {
            true => Reason::Retry,
            false => Reason::Changed,
        };
        if *touched != Touched::Nothing {
            for pod in self.pods.values() {
                if touched.includes(&pod.namespace) && is_served(&self.nodes, pod) {
                    self.pending.touch(pod.uid.clone(), reason);
                }
            }
        }
        self.settle();
    }

    fn time_went_by(&mut self) {
        for uid in self.timely.drain() {
            self.pending.touch(uid, Reason::Changed);
        }
    }

    fn is_settled(&self) -> bool {
        self.workloads.is_none() && self.keeper.unseen().is_none()
    }

    fn settle(&mut self) {
        match (self.keeper.unseen(), self.keeper.missing()) {
            (Some(unseen), _) => self.rules.fail(unseen),
            // It answers, and refuses: that is what is meant to happen.
            (None, Some(missing)) => self.rules.note(&*missing),
            (None, None) => self.rules.ok(),
        }
        let settled = self.is_settled();
        let was_settled = std::mem::replace(&mut self.settled, settled);
        if settled && !was_settled {
            // What was decided for them before was decided without knowing all.
            let feeds = self.nodes.values().flat_map(|node| &node.feeds);
            let begun: Vec<_> = feeds.filter(|feed| !feed.is_complete()).cloned().collect();
            for feed in begun {
                self.begin_round(&feed);
            }
        }
    }

    /// Brings some of the pods up to date that streams lack or that the rules' changes touched.
    fn catch_up(&mut self, most: usize) {
        let began = Instant::now();
        for _ in 0..most {
            let Some((uid, reason)) = self.pending.take() else {
                return;
            };
            if let Some(pod) = self.pods.get(&uid).cloned() {
                for feed in self.feeds(&pod) {
                    if reason != Reason::Begun || feed.expects(&uid) {
                        self.decide(&feed, pod.clone(), reason == Reason::Retry);
                    }
                }
            }
            if began.elapsed() >= LONGEST {
                return;
            }
        }
    }

    fn feeds(&self, pod: &Workload) -> Vec<Arc<Feed>> {
        let node = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        node.map(|node| node.feeds.clone()).unwrap_or_default()
    }

    /// Decides for a pod, and puts that into a feed.
    fn decide(&mut self, feed: &Arc<Feed>, pod: Arc<Workload>, retry: bool) {
        let before = feed.resident(&pod.uid);
        let before = before.as_ref().map(|resident| resident.decided.load());
        let decided = self.decider.decide(&pod, before.as_ref().map(|it| &***it));
        if decided.until.is_some() {
            self.timely.insert(pod.uid.clone());
        }
        if let (true, Standing::Allowed(allowed)) = (retry, &decided.standing) {
            allowed.lease.retry();
        }
        let Put { begun, ended } = feed.put(pod, decided);
        if let Some(key) = begun {
            let users = self.users.entry(key).or_default();
            let known = |user: &Weak<Feed>| std::ptr::eq(user.as_ptr(), Arc::as_ptr(feed));
            if !users.iter().any(known) {
                users.push(Arc::downgrade(feed));
            }
        }
        if let Some(key) = ended {
            self.leave_session(&key, feed);
        }
        self.complete(feed);
    }

    fn leave_session(&mut self, key: &Arc<SessionKey>, feed: &Arc<Feed>) {
        if let Some(users) = self.users.get_mut(key) {
            users.retain(|user| !std::ptr::eq(user.as_ptr(), Arc::as_ptr(feed)));
            if users.is_empty() {
                self.users.remove(key);
            }
        }
    }

    fn session_changed(&mut self, key: &Arc<SessionKey>) {
        let users = self.users.get(key).into_iter().flatten();
        for feed in users.filter_map(Weak::upgrade) {
            feed.session_changed(key);
        }
    }

    fn apply(&mut self, pod: Workload) {
        if self.pods.get(&pod.uid).is_some_and(|known| **known == pod) {
            return;
        }
        let pod = Arc::new(pod);
        let before = self.pods.insert(pod.uid.clone(), pod.clone());
        let is_agent = self.agents.put(&pod);
        if let Some(hosts) = &self.hosts {
            hosts.put(before.as_deref(), &pod);
        }
        if let Some(before) = before.as_deref().filter(|it| it.node != pod.node) {
            self.leave_node(before);
        }
        if is_agent {
            self.close_stale_streams(&pod.uid);
        }
        self.claim(before.as_deref(), &pod);
        if let Some(node) = &pod.node {
            let node = self.nodes.entry(node.clone()).or_default();
            node.pods.insert(pod.uid.clone());
            for feed in node.feeds.clone() {
                // The pod is new or changed, and not only its stream: what STS refused is worth
                // another try.
                self.decide(&feed, pod.clone(), true);
            }
        }
        self.metrics.set_pods(self.pods.len());
    }

    fn remove(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(hosts) = &self.hosts {
            hosts.remove(&pod);
        }
        if self.agents.remove(uid) {
            self.close_stale_streams(uid);
        }
        self.claims.remove(&pod);
        self.leave_node(&pod);
        self.metrics.set_pods(self.pods.len());
    }

    fn leave_node(&mut self, pod: &Workload) {
        let Some(name) = &pod.node else { return };
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.pods.remove(&pod.uid);
        let feeds = node.feeds.clone();
        if node.pods.is_empty() && feeds.is_empty() {
            self.nodes.remove(name);
        }
        for feed in feeds {
            if let Some(key) = feed.remove(&pod.uid) {
                self.leave_session(&key, &feed);
            }
            self.complete(&feed);
        }
    }

    /// Ends the streams whose agent's pod is over, gone, or on another node.
    fn close_stale_streams(&self, uid: &Arc<str>) {
        let streams = self.joined.iter();
        for feed in streams.filter(|feed| feed.pod_uid.as_ref() == Some(uid)) {
            let agent = self.agents.get(uid);
            let stays = agent.is_some_and(|pod| pod.node.as_ref() == Some(&feed.node));
            if !stays {
                feed.closed.cancel();
            }
        }
    }

    fn claim(&mut self, before: Option<&Workload>, pod: &Arc<Workload>) {
        if let Some(before) = before {
            self.claims.remove(before);
        }
        let clashes = self.claims.put(pod);
        let same = |before: &Workload| {
            before.node == pod.node && before.own_addresses() == pod.own_addresses()
        };
        if before.is_some_and(same) {
            // Something else about it changed, and this was told.
            return;
        }
        for (address, other) in clashes {
            self.metrics.address_claimed_twice();
            warn!(
                %address,
                namespace = %pod.namespace,
                pod = %pod.name,
                node = pod.node.as_deref(),
                other_namespace = %other.namespace,
                other_pod = %other.name,
                other_node = other.node.as_deref(),
                "pods of two nodes claim one address: each node judges for itself; a kubelet may have lied"
            );
        }
    }
}

fn is_served(nodes: &HashMap<Arc<str>, Node>, pod: &Workload) -> bool {
    let node = pod.node.as_ref().and_then(|node| nodes.get(node));
    node.is_some_and(|node| !node.feeds.is_empty())
}

#[cfg(test)]
mod tests;
