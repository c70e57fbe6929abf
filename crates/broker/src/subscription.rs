//! The subscription of one stream: the state that its agent should have, and the part of it that
//! has not been sent.
//!
//! Nothing is queued. The index marks pods and sessions as changed, and a message is built from the
//! current state when the stream has room. So an agent that reads slowly, or not at all, costs no
//! more than its node's pods and delays nothing else.

mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use rolegate_authorizer::ledger::{Issued, Ledger};
use rolegate_authorizer::pod::AssignedRoles;
use rolegate_authorizer::pod::{Authorization, DecisionRecord, PodEntry, RoleOf};
use rolegate_authorizer::recorder::{OutcomeRecorder, RequestOutcome};
use rolegate_core::session::{SessionKey, Validity};
use rolegate_core::workload::Workload;
use rolegate_proto::v1;
use rolegate_runtime::keyed_limit::Permit;
use rolegate_runtime::rate::Rate;
use rolegate_sessions::Lease;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use message::message;

/// Maximum subscriptions of one node. An agent and its successor have four together, and broken
/// streams count until they are detected. Each costs the index a pass over the node's pods, and its
/// certificate may be presented from anywhere.
pub const MAX_PER_NODE: usize = 8;
/// Rate of activations per node. An agent reconnects at most every 5 s, and a new agent starts
/// while the old one still serves.
pub const ACTIVATION_RATE: Rate = Rate {
    burst: 16.0,
    per_second: 0.5,
};
/// Maximum number of pods, and of sessions, in one message.
const BATCH_SIZE: usize = 64;
/// Maximum number of removals in one message.
const MAX_REMOVALS: usize = 1024;

/// The subscription of one stream. The index writes it; the stream's task sends from it.
#[derive(Debug)]
pub struct Subscription {
    /// The node that the stream authenticated as.
    pub node: Arc<str>,
    /// The agent's pod. The stream ends when the pod does.
    pub pod_uid: Option<Arc<str>>,
    /// Ends the stream.
    pub closed: CancellationToken,
    /// Released once the index has dropped the subscription too, which bounds the commands that
    /// wait for the index.
    _permit: Permit<Arc<str>>,
    changed: Notify,
    /// Cancelled once the subscription is complete. Any number of tasks can wait for it.
    filled: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<Arc<str>, Pod>,
    /// UIDs of pods to be sent.
    new_pods: BTreeSet<Arc<str>>,
    /// UIDs of deleted pods that the agent knows.
    removed_pod_uids: BTreeSet<Arc<str>>,
    slots: HashMap<Arc<SessionKey>, SessionSlot>,
    keys: HashMap<u64, Arc<SessionKey>>,
    /// Numbers of changed sessions that the agent knows.
    new_sessions: BTreeSet<u64>,
    /// Numbers of unused sessions that the agent knows.
    removed_sessions: Vec<u64>,
    last_number: u64,
    /// UIDs of pods that existed at activation and are not decided yet.
    expected: HashSet<Arc<str>>,
    complete: Completeness,
}

/// The state of the first complete update.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// The inputs are incomplete.
    #[default]
    Unknown,
    /// All pods are decided, but not all are sent.
    Due,
    /// All pods are decided and sent.
    Sent,
}

#[derive(Debug)]
struct Pod {
    entry: Arc<PodEntry>,
    session: Option<u64>,
    /// The sessions of the roles of its service account, in the order of their entries.
    assigned_sessions: Vec<Option<u64>>,
    /// `true` if it was sent to the agent.
    sent: bool,
}

/// A session on this stream.
#[derive(Debug)]
struct SessionSlot {
    number: u64,
    lease: Arc<Lease>,
    users: usize,
    /// `true` if it was sent to the agent.
    sent: bool,
    /// The last two credentials that were sent, newest last. An agent may still report the previous
    /// ones.
    pushed: Vec<Pushed>,
}

/// `AccessKeyId` and validity of credentials that were sent.
type Pushed = (Arc<str>, Validity);

impl Subscription {
    /// Creates an empty subscription.
    pub fn new(permit: Permit<Arc<str>>, pod_uid: Option<Arc<str>>) -> Self {
        Self {
            node: permit.key().clone(),
            pod_uid,
            closed: CancellationToken::new(),
            _permit: permit,
            changed: Notify::new(),
            filled: CancellationToken::new(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until there may be something to send.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the pod's last decision, as input of the next.
    pub(crate) fn entry(&self, uid: &str) -> Option<Arc<PodEntry>> {
        let state = self.state();
        state.pods.get(uid).map(|pod| pod.entry.clone())
    }

    /// Adds or updates a pod. The result lists sessions whose use changed.
    pub(crate) fn put(
        &self,
        workload: Arc<Workload>,
        decided: DecisionRecord,
        assigned: Option<AssignedRoles>,
    ) -> SessionChanges {
        let assigned = assigned.map(Arc::new);
        let mut state = self.state();
        state.expected.remove(&workload.uid);
        let before = state.pods.get_mut(&workload.uid);
        if let Some(before) = before {
            let last = before.entry.decided.load();
            let roles = before.entry.assigned.load();
            let same_roles = match (&*roles, &assigned) {
                (Some(last), Some(new)) => last.same_responses(new),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            let same = same_to_agent(&before.entry.workload, &workload)
                && last.same_response(&decided)
                && same_roles;
            if same {
                // The pod is unchanged, but the generation of the rules is newer.
                drop((last, roles));
                before.entry.assigned.store(assigned);
                if before.entry.workload == workload {
                    before.entry.decided.store(Arc::new(decided));
                } else {
                    // Labels, for example, which the next rule may read.
                    let changed = before.entry.changed(workload, decided);
                    before.entry = Arc::new(changed);
                }
                return SessionChanges::default();
            }
        }
        let uid = workload.uid.clone();
        let mut begun = Vec::new();
        // Taken before the old sessions are released, so that an unchanged session keeps its number.
        let session = state.take_session_of(&decided, &mut begun);
        let entry = PodEntry::new(workload, decided);
        let roles = assigned.iter().flat_map(|assigned| assigned.entries());
        let assigned_sessions = roles
            .map(|role| state.take_session_of(&role.decided.load(), &mut begun))
            .collect();
        entry.assigned.store(assigned);
        let (sent, old) = match state.pods.remove(&uid) {
            Some(before) => (before.sent, before.sessions().collect()),
            // The pod returned before its removal was sent, so the agent never lost it.
            None => (state.removed_pod_uids.remove(&uid), Vec::new()),
        };
        let pod = Pod {
            entry: Arc::new(entry),
            session,
            assigned_sessions,
            sent,
        };
        state.pods.insert(uid.clone(), pod);
        state.new_pods.insert(uid);
        let removed_sessions = state.leave_sessions(old);
        drop(state);
        self.changed.notify_one();
        SessionChanges {
            begun,
            removed_sessions,
        }
    }

    /// Removes a pod.
    pub(crate) fn remove(&self, uid: &str) -> Vec<Arc<SessionKey>> {
        let mut state = self.state();
        state.expected.remove(uid);
        let Some((uid, pod)) = state.pods.remove_entry(uid) else {
            return Vec::new();
        };
        state.new_pods.remove(&uid);
        if pod.sent {
            state.removed_pod_uids.insert(uid);
        }
        let removed_sessions = state.leave_sessions(pod.sessions());
        drop(state);
        self.changed.notify_one();
        removed_sessions
    }

    /// Marks a session of the stream as changed: STS answered or failed.
    pub(crate) fn session_changed(&self, key: &SessionKey) {
        let mut state = self.state();
        let Some((number, true)) = state.slots.get(key).map(|slot| (slot.number, slot.sent)) else {
            // It is sent with the first pod that uses it.
            return;
        };
        state.new_sessions.insert(number);
        drop(state);
        self.changed.notify_one();
    }

    /// Sets the pods that must be decided before the subscription is complete.
    pub(crate) fn expect(&self, pods: HashSet<Arc<str>>) {
        self.state().expected = pods;
    }

    /// Returns `true` if this pod is not decided yet.
    pub(crate) fn expects(&self, uid: &str) -> bool {
        self.state().expected.contains(uid)
    }

    /// Marks the subscription as complete as soon as no pod is left to decide.
    pub(crate) fn complete(&self) {
        let mut state = self.state();
        if state.complete == Completeness::Unknown && state.expected.is_empty() {
            state.complete = Completeness::Due;
            state.expected = HashSet::new();
            drop(state);
            self.filled.cancel();
            self.changed.notify_one();
        }
    }

    /// Returns `true` if the subscription is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.filled.is_cancelled()
    }

    /// Waits until the subscription is complete.
    pub(crate) async fn completed(&self) {
        self.filled.cancelled().await;
    }

    /// Returns the pod that owns an address, if exactly one does.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Arc<PodEntry>> {
        let state = self.state();
        let owns = |pod: &&Pod| pod.entry.workload.own_addresses().contains(&address);
        let mut owners = state.pods.values().filter(owns);
        let owner = owners.next()?;
        // With two owners the caller is ambiguous.
        owners.next().is_none().then(|| owner.entry.clone())
    }

    /// Returns the keys of the sessions in use.
    pub(crate) fn sessions(&self) -> Vec<Arc<SessionKey>> {
        self.state().slots.keys().cloned().collect()
    }

    /// Returns `true` if there is something to send.
    pub fn has_changes(&self) -> bool {
        self.state().has_changes()
    }

    /// Builds the next message from the current state. The ledger records which sessions it carries
    /// for which pods.
    pub fn take(&self, ledger: &Ledger, now: Timestamp) -> Option<v1::Update> {
        let mut state = self.state();
        if !state.has_changes() {
            return None;
        }
        let mut handed = Vec::new();
        let update = state.take(&mut handed);
        drop(state);
        for (entry, (access_key_id, lifetime)) in &handed {
            let decided = entry.decided.load();
            if let Authorization::Allowed(allowed) = &decided.authorization {
                let handed = Issued {
                    pod: &entry.workload,
                    allowed,
                    endpoint: entry.role_of.endpoint(),
                    access_key_id,
                    lifetime: *lifetime,
                };
                ledger.sent(handed, now);
            }
        }
        Some(update)
    }

    /// Prioritizes the session `number`, because a pod of the node is waiting for it.
    pub fn prioritize(&self, number: u64) {
        let state = self.state();
        if let Some(slot) = state.slot(number) {
            slot.lease.prioritize();
        }
    }

    /// Records the outcome of a pod's request, as reported by the agent. Outcomes that name pods or
    /// sessions that were not sent on this stream are ignored.
    pub fn record(
        &self,
        uid: &str,
        (role_of, outcome): (&RoleOf, &RequestOutcome),
        recorder: &OutcomeRecorder,
        now: Timestamp,
    ) {
        let state = self.state();
        let Some(pod) = state.pods.get(uid).filter(|pod| pod.sent) else {
            return;
        };
        let Some(entry) = pod.entry_of(role_of) else {
            return;
        };
        let decided = entry.decided.load();
        match (&decided.authorization, outcome) {
            (Authorization::Denied { denial, .. }, RequestOutcome::Denied) => {
                recorder.denied(&entry, denial, now);
            }
            (Authorization::Allowed(allowed), RequestOutcome::Audited) => {
                for denial in &allowed.audited {
                    recorder.audited(&entry, denial, now);
                }
            }
            (Authorization::Allowed(allowed), RequestOutcome::Failing) => {
                if let (_, Some(failure)) = allowed.lease.cell().content() {
                    recorder.failing(&entry, &allowed.role, &failure, now);
                }
            }
            (Authorization::Allowed(allowed), RequestOutcome::Served { access_key_id }) => {
                let Some(slot) = state.slots.get(allowed.lease.cell().key()) else {
                    return;
                };
                let pushed = slot.pushed.iter().find(|(id, _)| id == access_key_id);
                if let Some((id, _)) = pushed {
                    let uid = entry.workload.uid.clone();
                    recorder.ledger().confirm(uid, id.clone(), now);
                }
            }
            _ => {}
        }
    }
}

/// Sessions that the stream started or stopped using with a change.
#[derive(Debug, Default)]
pub(crate) struct SessionChanges {
    pub(crate) begun: Vec<Arc<SessionKey>>,
    pub(crate) removed_sessions: Vec<Arc<SessionKey>>,
}

impl Pod {
    /// Returns the entries of the pod's own role and those of its service account, each with the
    /// number of its session.
    fn roles(&self) -> Vec<(Arc<PodEntry>, Option<u64>)> {
        let assigned = self.entry.assigned.load();
        let entries = assigned.iter().flat_map(|assigned| assigned.entries());
        let assigned = entries.cloned().zip(self.assigned_sessions.iter().copied());
        let own = (self.entry.clone(), self.session);
        std::iter::once(own).chain(assigned).collect()
    }

    /// Returns the numbers of the sessions in use.
    fn sessions(&self) -> impl Iterator<Item = u64> {
        let all = std::iter::once(&self.session).chain(&self.assigned_sessions);
        all.flatten().copied()
    }

    fn entry_of(&self, role_of: &RoleOf) -> Option<Arc<PodEntry>> {
        match role_of {
            RoleOf::Pod => Some(self.entry.clone()),
            RoleOf::ServiceAccount { audience } => {
                let assigned = self.entry.assigned.load();
                let assigned = assigned.as_ref()?;
                assigned.entry(audience.as_deref()).cloned()
            }
        }
    }
}

/// Returns `true` if both workloads look the same to an agent.
fn same_to_agent(one: &Workload, other: &Workload) -> bool {
    one.own_addresses() == other.own_addresses()
        && one.name == other.name
        && one.namespace == other.namespace
        && one.service_account == other.service_account
}

impl State {
    /// Adds a user of the session of a decision, if it allows one, and returns the session's number.
    /// Adds its key to `begun` if the session was not in use.
    fn take_session_of(
        &mut self,
        decided: &DecisionRecord,
        begun: &mut Vec<Arc<SessionKey>>,
    ) -> Option<u64> {
        let lease = decided.lease()?;
        let key = lease.cell().shared_key();
        if !self.slots.contains_key(&key) {
            begun.push(key);
        }
        Some(self.take_session(lease.clone()))
    }

    fn take_session(&mut self, lease: Arc<Lease>) -> u64 {
        let key = lease.cell().shared_key();
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.users += 1;
            return slot.number;
        }
        self.last_number += 1;
        let number = self.last_number;
        self.keys.insert(number, key.clone());
        let slot = SessionSlot {
            number,
            lease,
            users: 1,
            sent: false,
            pushed: Vec::new(),
        };
        self.slots.insert(key, slot);
        number
    }

    /// Returns the session with this number, if the stream uses it.
    fn slot(&self, number: u64) -> Option<&SessionSlot> {
        self.slots.get(self.keys.get(&number)?)
    }

    /// Removes a user of each of these sessions. Returns the keys of those that were left by their
    /// last user.
    fn leave_sessions(&mut self, numbers: impl IntoIterator<Item = u64>) -> Vec<Arc<SessionKey>> {
        let numbers = numbers.into_iter();
        numbers
            .filter_map(|number| self.leave_session(number))
            .collect()
    }

    /// Removes a user of the session. Returns the key if it was the last one.
    fn leave_session(&mut self, number: u64) -> Option<Arc<SessionKey>> {
        let key = self.keys.get(&number)?.clone();
        let slot = self.slots.get_mut(&key)?;
        slot.users -= 1;
        if slot.users > 0 {
            return None;
        }
        if slot.sent {
            self.removed_sessions.push(number);
        }
        self.new_sessions.remove(&number);
        self.slots.remove(&key);
        self.keys.remove(&number);
        Some(key)
    }

    fn has_changes(&self) -> bool {
        !self.new_pods.is_empty()
            || !self.new_sessions.is_empty()
            || !self.removed_pod_uids.is_empty()
            || !self.removed_sessions.is_empty()
            || self.complete == Completeness::Due
    }

    /// Builds the next message. Appends what it sends to which pods to `handed`.
    fn take(&mut self, handed: &mut Vec<(Arc<PodEntry>, Pushed)>) -> v1::Update {
        let mut update = v1::Update::default();
        while update.pods.len() < BATCH_SIZE
            && update.sessions.len() < BATCH_SIZE
            && let Some(uid) = self.new_pods.pop_first()
        {
            let Some(pod) = self.pods.get_mut(&uid) else {
                continue;
            };
            pod.sent = true;
            update.pods.push(message(pod));
            for (entry, number) in pod.roles() {
                let Some(number) = number else { continue };
                update.sessions.extend(self.introduce(number));
                if let Some(pushed) = self.slot(number).and_then(|slot| slot.pushed.last()) {
                    handed.push((entry, pushed.clone()));
                }
            }
        }
        while update.sessions.len() < BATCH_SIZE
            && let Some(number) = self.new_sessions.pop_first()
        {
            let key = self.keys.get(&number);
            if let Some(slot) = key.and_then(|key| self.slots.get_mut(key)) {
                update.sessions.push(slot.message());
                let Some(pushed) = slot.pushed.last() else {
                    continue;
                };
                let users = self.pods.values().filter(|pod| pod.sent);
                let users = users.filter(|pod| pod.sessions().any(|used| used == number));
                let entries = users.flat_map(Pod::roles);
                let entries = entries.filter(|(_, used)| *used == Some(number));
                handed.extend(entries.map(|(entry, _)| (entry, pushed.clone())));
            }
        }
        // Removals come last, when nothing refers to them any more.
        if self.new_pods.is_empty() && self.new_sessions.is_empty() {
            let removed_pod_uids = std::iter::from_fn(|| self.removed_pod_uids.pop_first());
            update.removed_pod_uids = removed_pod_uids
                .take(MAX_REMOVALS)
                .map(|uid| uid.to_string())
                .collect();
            let removed_sessions = self.removed_sessions.len().min(MAX_REMOVALS);
            update.removed_sessions = self.removed_sessions.drain(..removed_sessions).collect();
            if self.removed_pod_uids.is_empty()
                && self.removed_sessions.is_empty()
                && self.complete == Completeness::Due
            {
                self.complete = Completeness::Sent;
                update.complete = true;
            }
        }
        update
    }

    /// Returns the session's first message, with its key, unless the agent knows it.
    fn introduce(&mut self, number: u64) -> Option<v1::Session> {
        let key = self.keys.get(&number)?;
        let slot = self.slots.get_mut(key)?;
        if slot.sent {
            return None;
        }
        slot.sent = true;
        self.new_sessions.remove(&number);
        let mut session = slot.message();
        session.key = Some((&**key).into());
        Some(session)
    }
}

impl SessionSlot {
    /// Returns the session's current message.
    fn message(&mut self) -> v1::Session {
        let (session, failure) = self.lease.cell().content();
        let credentials = session.map(|session| {
            let credentials = &session.credentials;
            let id = &credentials.access_key_id;
            if self.pushed.last().is_none_or(|(last, _)| last != id) {
                self.pushed.push((id.clone(), credentials.validity));
                if self.pushed.len() > 2 {
                    self.pushed.remove(0);
                }
            }
            credentials.into()
        });
        v1::Session {
            number: self.number,
            key: None,
            credentials,
            failure: failure.as_ref().map(Into::into),
        }
    }
}
