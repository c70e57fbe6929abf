//! The index: the one task that knows all pods and updates the subscription of each stream.
//!
//! The index decides only for pods on nodes that a stream serves, so the broker holds sessions for
//! those pods alone. Rule changes and the pods of new streams are processed in batches; between
//! batches the index reads its sources.

mod address_claims;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::reconciler::{
    BATCH_SIZE, MissingRules, Reconciler, ReconcilerState, Sources,
};
use rolegate_authorizer::work_queue::Reason;
use rolegate_core::rule_set_builder::Invalidated;
use rolegate_core::session::SessionKey;
use rolegate_core::workload::Workload;
use rolegate_rules::store::RuleStoreWriter;
use rolegate_runtime::readiness::Readiness;
use tokio::sync::mpsc;
use tracing::warn;

use crate::agent_pods::Agents;
use crate::metrics::BrokerMetrics;
use crate::node_addresses::NodeAddresses;
use crate::subscription::{SessionChanges, Subscription};
use address_claims::Claims;

/// Maximum number of pods decided after each command of a stream.
const COMMAND_BATCH_SIZE: usize = 8;
/// Interval at which time-dependent decisions are evaluated again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(15);

/// A command from a stream to the index.
#[derive(Debug)]
pub enum StreamCommand {
    /// The stream has authenticated. It must end together with its agent's pod.
    Join(Arc<Subscription>),
    /// The agent now serves pods from this stream.
    Activate(Arc<Subscription>),
    /// The stream is closed.
    Leave(Arc<Subscription>),
}

/// The components that the index needs.
#[derive(Debug)]
pub struct IndexParts {
    /// The writer of the rule store.
    pub writer: RuleStoreWriter,
    /// The authorizer, which decides by these rules.
    pub authorizer: Authorizer,
    /// The agents' pods.
    pub agents: Agents,
    /// The addresses of nodes, if kiam agents are served.
    pub node_addresses: Option<NodeAddresses>,
    /// The broker's metrics.
    pub metrics: BrokerMetrics,
}

/// The inputs of the index.
#[derive(Debug)]
pub struct IndexSources {
    /// Changes of pods, namespaces, rules and the AWS environment.
    pub cluster: Sources,
    /// Commands from streams.
    pub commands: mpsc::UnboundedReceiver<StreamCommand>,
    /// Keys of sessions that changed.
    pub sessions: mpsc::UnboundedReceiver<Arc<SessionKey>>,
}

#[derive(Debug, Default)]
struct Node {
    pods: HashSet<Arc<str>>,
    /// Active subscriptions of the node. There are two for a moment when an agent is replaced.
    subscriptions: Vec<Arc<Subscription>>,
}

/// The index of pods. It writes the subscriptions.
#[derive(Debug)]
pub struct Index {
    state: ReconcilerState,
    authorizer: Authorizer,
    agents: Agents,
    node_addresses: Option<NodeAddresses>,
    metrics: BrokerMetrics,
    /// All pods, by UID.
    pods: HashMap<Arc<str>, Arc<Workload>>,
    nodes: HashMap<Arc<str>, Node>,
    /// The subscriptions of all authenticated streams.
    joined: Vec<Arc<Subscription>>,
    /// The number of active subscriptions.
    serving: usize,
    claims: Claims,
    /// The subscriptions that use each session.
    users: HashMap<Arc<SessionKey>, Vec<Weak<Subscription>>>,
    /// UIDs of pods whose decision expires: a policy reads the time, or did not finish.
    timely: HashSet<Arc<str>>,
    /// `true` if everything that a complete subscription needs was known at the last change.
    synced: bool,
}

impl Index {
    /// Creates an empty index.
    pub fn new(parts: IndexParts, readiness: &Readiness) -> Self {
        Self {
            // Without rules the broker serves and denies every request, as intended.
            state: ReconcilerState::new(parts.writer, readiness, MissingRules::Note),
            authorizer: parts.authorizer,
            agents: parts.agents,
            node_addresses: parts.node_addresses,
            metrics: parts.metrics,
            pods: HashMap::new(),
            nodes: HashMap::new(),
            joined: Vec::new(),
            serving: 0,
            claims: Claims::default(),
            users: HashMap::new(),
            timely: HashSet::new(),
            synced: false,
        }
    }

    /// Processes the sources until they end.
    pub async fn run(mut self, mut sources: IndexSources) {
        let mut timely = tokio::time::interval(RECHECK_INTERVAL);
        loop {
            tokio::select! {
                // Sources take precedence over commands, which a node can send at any rate, and
                // over queued pods. Sessions come first: the limit on calls to STS bounds their
                // number, and without them the credentials of all pods would expire.
                biased;
                Some(key) = sources.sessions.recv() => self.session_changed(&key),
                event = sources.cluster.next() => match event {
                    Some(event) => self.event(event),
                    None => return,
                },
                _ = timely.tick() => self.recheck_timely(),
                Some(command) = sources.commands.recv() => {
                    self.command(command);
                    // A node that keeps reopening streams must not delay a revocation.
                    self.reconcile_batch(COMMAND_BATCH_SIZE);
                }
                () = tokio::task::yield_now(), if !self.state.is_idle() => {
                    self.reconcile_batch(BATCH_SIZE);
                }
            }
        }
    }

    /// Applies a command of a stream.
    pub fn command(&mut self, command: StreamCommand) {
        match command {
            StreamCommand::Join(subscription) => {
                // The pod may have been deleted between authentication and this command.
                let gone = |uid: &Arc<str>| self.agents.get(uid).is_none();
                if subscription.pod_uid.as_ref().is_some_and(gone) {
                    subscription.closed.cancel();
                    return;
                }
                self.joined.push(subscription);
            }
            StreamCommand::Activate(subscription) => {
                let node = self.nodes.entry(subscription.node.clone()).or_default();
                node.subscriptions.push(subscription.clone());
                self.serving += 1;
                self.begin_round(&subscription);
            }
            StreamCommand::Leave(subscription) => {
                self.joined
                    .retain(|other| !Arc::ptr_eq(other, &subscription));
                if let Some(node) = self.nodes.get_mut(&subscription.node) {
                    let before = node.subscriptions.len();
                    node.subscriptions
                        .retain(|other| !Arc::ptr_eq(other, &subscription));
                    self.serving -= before - node.subscriptions.len();
                    if node.subscriptions.is_empty() && node.pods.is_empty() {
                        self.nodes.remove(&subscription.node);
                    }
                }
                for key in subscription.sessions() {
                    self.leave_session(&key, &subscription);
                }
            }
        }
        self.metrics.set_streams(self.serving, self.joined.len());
    }

    /// Queues all pods of the node. The subscription is complete once they are decided.
    fn begin_round(&mut self, subscription: &Subscription) {
        let node = self.nodes.get(&subscription.node);
        let pods = node.map(|node| node.pods.clone()).unwrap_or_default();
        for uid in &pods {
            self.state.queue(uid.clone(), Reason::Missing);
        }
        subscription.expect(pods);
        self.complete(subscription);
    }

    /// Marks the subscription as complete if all inputs are known and all pods are decided.
    fn complete(&self, subscription: &Subscription) {
        if self.synced {
            subscription.complete();
        }
    }

    /// Queues the pods whose decision expires.
    fn recheck_timely(&mut self) {
        for uid in self.timely.drain() {
            self.state.queue(uid, Reason::Changed);
        }
    }

    fn subscriptions(&self, pod: &Workload) -> Vec<Arc<Subscription>> {
        let node = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        node.map(|node| node.subscriptions.clone())
            .unwrap_or_default()
    }

    /// Decides for a pod and updates the subscription.
    fn decide(&mut self, subscription: &Arc<Subscription>, pod: Arc<Workload>, retry: bool) {
        let known = subscription.entry(&pod.uid);
        let assigned = known.as_ref().and_then(|entry| entry.assigned.load_full());
        let before = known.as_ref().map(|entry| entry.decided.load());
        let decided = self
            .authorizer
            .decide(&pod, before.as_ref().map(|it| &***it));
        let assigned = self.authorizer.assign_roles(&pod, assigned.as_deref());
        let entries = assigned.iter().flat_map(|assigned| assigned.entries());
        let roles: Vec<_> = entries.map(|role| role.decided.load_full()).collect();
        let all = || roles.iter().map(|role| &**role).chain([&decided]);
        if all().any(|decided| decided.expires_at.is_some()) {
            self.timely.insert(pod.uid.clone());
        }
        for lease in all()
            .filter_map(|decided| decided.lease())
            .filter(|_| retry)
        {
            lease.retry();
        }
        let SessionChanges {
            begun,
            removed_sessions,
        } = subscription.put(pod, decided, assigned);
        for key in begun {
            let users = self.users.entry(key).or_default();
            let known =
                |user: &Weak<Subscription>| std::ptr::eq(user.as_ptr(), Arc::as_ptr(subscription));
            if !users.iter().any(known) {
                users.push(Arc::downgrade(subscription));
            }
        }
        for key in removed_sessions {
            self.leave_session(&key, subscription);
        }
        self.complete(subscription);
    }

    fn leave_session(&mut self, key: &Arc<SessionKey>, subscription: &Arc<Subscription>) {
        if let Some(users) = self.users.get_mut(key) {
            users.retain(|user| !std::ptr::eq(user.as_ptr(), Arc::as_ptr(subscription)));
            if users.is_empty() {
                self.users.remove(key);
            }
        }
    }

    fn session_changed(&mut self, key: &Arc<SessionKey>) {
        let users = self.users.get(key).into_iter().flatten();
        for subscription in users.filter_map(Weak::upgrade) {
            subscription.session_changed(key);
        }
    }

    fn leave_node(&mut self, pod: &Workload) {
        let Some(name) = &pod.node else { return };
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.pods.remove(&pod.uid);
        let subscriptions = node.subscriptions.clone();
        if node.pods.is_empty() && subscriptions.is_empty() {
            self.nodes.remove(name);
        }
        for subscription in subscriptions {
            for key in subscription.remove(&pod.uid) {
                self.leave_session(&key, &subscription);
            }
            self.complete(&subscription);
        }
    }

    /// Ends the streams whose agent's pod has finished, was deleted, or runs on another node.
    fn close_stale_streams(&self, uid: &Arc<str>) {
        let streams = self.joined.iter();
        for subscription in
            streams.filter(|subscription| subscription.pod_uid.as_ref() == Some(uid))
        {
            let agent = self.agents.get(uid);
            let stays = agent.is_some_and(|pod| pod.node.as_ref() == Some(&subscription.node));
            if !stays {
                subscription.closed.cancel();
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
            // The conflict was reported already; another field of the pod has changed.
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
                "pods on two nodes claim the same IP: each node serves only its own pods; a \
                 kubelet may be compromised"
            );
        }
    }
}

impl Reconciler for Index {
    fn state(&mut self) -> &mut ReconcilerState {
        &mut self.state
    }

    fn apply(&mut self, pod: Workload) {
        if self.pods.get(&pod.uid).is_some_and(|known| **known == pod) {
            return;
        }
        let pod = Arc::new(pod);
        let before = self.pods.insert(pod.uid.clone(), pod.clone());
        let is_agent = self.agents.put(&pod);
        if let Some(node_addresses) = &self.node_addresses {
            node_addresses.put(before.as_deref(), &pod);
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
            for subscription in node.subscriptions.clone() {
                // The pod itself changed, not only its stream, so a role that STS refused is worth
                // a retry.
                self.decide(&subscription, pod.clone(), true);
            }
        }
        self.metrics.set_pods(self.pods.len());
    }

    fn remove(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(node_addresses) = &self.node_addresses {
            node_addresses.remove(&pod);
        }
        if self.agents.remove(uid) {
            self.close_stale_streams(uid);
        }
        self.claims.remove(&pod);
        self.leave_node(&pod);
        self.metrics.set_pods(self.pods.len());
    }

    fn retain(&mut self, uids: &HashSet<Arc<str>>) {
        let gone = self.pods.keys().filter(|uid| !uids.contains(*uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.remove(&uid);
        }
    }

    fn affected(&self, change: &Invalidated) -> Vec<Arc<str>> {
        self.pods
            .values()
            .filter(|pod| change.includes(pod) && is_served(&self.nodes, pod))
            .map(|pod| pod.uid.clone())
            .collect()
    }

    fn reconcile(&mut self, uid: &Arc<str>, reason: Reason) {
        let Some(pod) = self.pods.get(uid).cloned() else {
            return;
        };
        for subscription in self.subscriptions(&pod) {
            if reason != Reason::Missing || subscription.expects(uid) {
                self.decide(&subscription, pod.clone(), reason == Reason::Retry);
            }
        }
    }

    fn synced_changed(&mut self, synced: bool) {
        let had_synced = std::mem::replace(&mut self.synced, synced);
        if synced && !had_synced {
            // Earlier decisions for these pods were made with incomplete inputs.
            let subscriptions = self.nodes.values().flat_map(|node| &node.subscriptions);
            let incomplete: Vec<_> = subscriptions
                .filter(|subscription| !subscription.is_complete())
                .cloned()
                .collect();
            for subscription in incomplete {
                self.begin_round(&subscription);
            }
        }
    }
}

fn is_served(nodes: &HashMap<Arc<str>, Node>, pod: &Workload) -> bool {
    let node = pod.node.as_ref().and_then(|node| nodes.get(node));
    node.is_some_and(|node| !node.subscriptions.is_empty())
}

#[cfg(test)]
mod tests;
