//! The feed of one stream: what its agent should know, and what of it has not been sent yet.
//!
//! Nothing is queued. The desk notes which pods and sessions are news, and what is sent is made of
//! how things are when the stream has room; so an agent that reads slowly, or not at all, costs
//! what its node's pods cost and delays nobody.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rolegate_aws::sessions::Lease;
use rolegate_core::session::{Life, SessionKey};
use rolegate_core::workload::Workload;
use rolegate_proto::{v1, wire};
use rolegate_runtime::places::Place;
use rolegate_runtime::rate::Rate;
use rolegate_standing::ledger::{Handed, Ledger};
use rolegate_standing::resident::{Decided, Resident, Standing};
use rolegate_standing::tell::{NoticeOutcome, Tell};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Feeds of one node: its agent has two streams, that one and its successor four, and those that
/// broke count until it is noticed. Each costs the desk a look at all of the node's pods, and its
/// certificate may be shown from anywhere.
pub const PER_NODE: usize = 8;
/// New streams by which a node's pods are served. An agent tries again every 5 s at the most where
/// its streams break, and one that follows another begins beside it.
pub const BEGINS: Rate = Rate {
    burst: 16.0,
    per_second: 0.5,
};
/// Pods, and sessions, in one message.
const PORTION: usize = 64;
/// Names of what is gone in one message.
const GONE: usize = 1024;

/// One stream's feed. The desk writes it, the stream's task sends from it.
#[derive(Debug)]
pub struct Feed {
    /// The node that the stream was proven to be for.
    pub node: Arc<str>,
    /// The agent's pod, with which the stream ends.
    pub pod_uid: Option<Arc<str>>,
    /// Ends the stream.
    pub closed: CancellationToken,
    /// Free when the desk too has let the feed go: so what may wait for the desk is bounded.
    _place: Place<Arc<str>>,
    news: Notify,
    /// Cancelled once the feed is complete, for any number of those who wait for it.
    filled: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<Arc<str>, Pod>,
    /// UIDs of pods to be sent.
    new_pods: BTreeSet<Arc<str>>,
    /// UIDs of pods that the agent knows and that are gone.
    gone: BTreeSet<Arc<str>>,
    slots: HashMap<Arc<SessionKey>, Slot>,
    keys: HashMap<u64, Arc<SessionKey>>,
    /// Numbers of sessions to be sent, of those that the agent knows.
    new_sessions: BTreeSet<u64>,
    /// Numbers of sessions that the agent knows and that nobody uses any more.
    ended: Vec<u64>,
    last_number: u64,
    /// UIDs of pods that were there at the beginning and that nothing was decided for since.
    expected: HashSet<Arc<str>>,
    complete: Completeness,
}

/// Whether the agent knows all there was at the beginning.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// The desk itself doesn't yet.
    #[default]
    Unknown,
    /// All is in the feed.
    Due,
    /// And was sent.
    Sent,
}

#[derive(Debug)]
struct Pod {
    resident: Arc<Resident>,
    session: Option<u64>,
    /// Whether the agent knows it.
    sent: bool,
}

/// A session on this stream.
#[derive(Debug)]
struct Slot {
    number: u64,
    lease: Arc<Lease>,
    users: usize,
    /// Whether the agent knows it.
    sent: bool,
    /// The last two that were sent, newest last: the one before may be reported a moment later.
    pushed: Vec<Pushed>,
}

/// `AccessKeyId` and life of a session that was sent.
type Pushed = (Arc<str>, Life);

impl Feed {
    /// Nothing to send yet.
    pub fn new(place: Place<Arc<str>>, pod_uid: Option<Arc<str>>) -> Self {
        Self {
            node: place.whose().clone(),
            pod_uid,
            closed: CancellationToken::new(),
            _place: place,
            news: Notify::new(),
            filled: CancellationToken::new(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there may be news.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What was decided for a pod last, to decide again with.
    pub(crate) fn resident(&self, uid: &str) -> Option<Arc<Resident>> {
        let state = self.state();
        state.pods.get(uid).map(|pod| pod.resident.clone())
    }

    /// A pod is new or changed, or was decided again. Returns whether the agent has to hear of it.
    pub(crate) fn put(&self, workload: Arc<Workload>, decided: Decided) -> Put {
        let mut state = self.state();
        state.expected.remove(&workload.uid);
        let before = state.pods.get_mut(&workload.uid);
        if let Some(before) = before {
            let last = before.resident.decided.load();
            let same = looks_the_same(&before.resident.workload, &workload)
                && last.says_the_same_as(&decided);
            if same {
                // The same pod goes on, by the rules of now.
                drop(last);
                if before.resident.workload == workload {
                    before.resident.decided.store(Arc::new(decided));
                } else {
                    // Labels, say, which the next rule may read.
                    let changed = before.resident.changed(workload, decided);
                    before.resident = Arc::new(changed);
                }
                return Put::default();
            }
        }
        let uid = workload.uid.clone();
        let lease = match &decided.standing {
            Standing::Allowed(allowed) => Some(allowed.lease.clone()),
            _ => None,
        };
        // Taken before the old one is let go, so that a session that stays keeps its number.
        let session = lease.map(|lease| state.take_session(lease));
        let resident = Arc::new(Resident::new(workload, decided));
        let (sent, old) = match state.pods.remove(&uid) {
            Some(before) => (before.sent, before.session),
            // One that comes back before its end was told never went, as far as the agent knows.
            None => (state.gone.remove(&uid), None),
        };
        let pod = Pod {
            resident,
            session,
            sent,
        };
        state.pods.insert(uid.clone(), pod);
        state.new_pods.insert(uid);
        let ended = old.and_then(|number| state.leave_session(number));
        let begun = session.and_then(|number| state.began(number));
        drop(state);
        self.news.notify_one();
        Put { begun, ended }
    }

    /// A pod is gone.
    pub(crate) fn remove(&self, uid: &str) -> Option<Arc<SessionKey>> {
        let mut state = self.state();
        state.expected.remove(uid);
        let (uid, pod) = state.pods.remove_entry(uid)?;
        state.new_pods.remove(&uid);
        if pod.sent {
            state.gone.insert(uid);
        }
        let ended = pod.session.and_then(|number| state.leave_session(number));
        drop(state);
        self.news.notify_one();
        ended
    }

    /// A session that the stream uses was fetched, or could not be.
    pub(crate) fn session_changed(&self, key: &SessionKey) {
        let mut state = self.state();
        let Some((number, true)) = state.slots.get(key).map(|slot| (slot.number, slot.sent)) else {
            // It is sent with the first pod that uses it, as it is then.
            return;
        };
        state.new_sessions.insert(number);
        drop(state);
        self.news.notify_one();
    }

    /// Pods that are to be decided, or to go, before the feed is complete.
    pub(crate) fn expect(&self, pods: HashSet<Arc<str>>) {
        self.state().expected = pods;
    }

    /// Returns whether this pod is still to be decided.
    pub(crate) fn expects(&self, uid: &str) -> bool {
        self.state().expected.contains(uid)
    }

    /// All that there is is known: it is in the feed, unless pods are still to be decided.
    pub(crate) fn complete(&self) {
        let mut state = self.state();
        if state.complete == Completeness::Unknown && state.expected.is_empty() {
            state.complete = Completeness::Due;
            state.expected = HashSet::new();
            drop(state);
            self.filled.cancel();
            self.news.notify_one();
        }
    }

    /// Whether all that there is is in the feed.
    pub(crate) fn is_complete(&self) -> bool {
        self.filled.is_cancelled()
    }

    /// Returns once all that there is is in the feed.
    pub(crate) async fn completed(&self) {
        self.filled.cancelled().await;
    }

    /// The one pod that owns an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Arc<Resident>> {
        let state = self.state();
        let owns = |pod: &&Pod| pod.resident.workload.own_addresses().contains(&address);
        let mut owners = state.pods.values().filter(owns);
        let owner = owners.next()?;
        // Of two nobody knows which one asks.
        owners.next().is_none().then(|| owner.resident.clone())
    }

    /// Keys of the sessions in use.
    pub(crate) fn sessions(&self) -> Vec<Arc<SessionKey>> {
        self.state().slots.keys().cloned().collect()
    }

    /// Whether there is something to send.
    pub fn has_news(&self) -> bool {
        self.state().has_news()
    }

    /// The next message, made of how things are now. Which sessions are in it for which pods is
    /// written into the ledger.
    pub fn take(&self, ledger: &Ledger, now: Timestamp) -> Option<v1::Update> {
        let mut state = self.state();
        if !state.has_news() {
            return None;
        }
        let mut handed = Vec::new();
        let update = state.take(&mut handed);
        drop(state);
        for (resident, (access_key_id, life)) in &handed {
            let decided = resident.decided.load();
            if let Standing::Allowed(allowed) = &decided.standing {
                let handed = Handed {
                    pod: &resident.workload,
                    allowed,
                    access_key_id,
                    life: *life,
                };
                ledger.sent(handed, now);
            }
        }
        Some(update)
    }

    /// A pod of the node is waiting for the session `number`.
    pub fn asked(&self, number: u64) {
        let state = self.state();
        if let Some(slot) = state.slot(number) {
            slot.lease.ask();
        }
    }

    /// What the agent says came of a request of one of the node's pods, told as this broker knows
    /// it. What it says of a pod or a session that it was not sent is nothing.
    pub fn notice(&self, uid: &str, outcome: &NoticeOutcome, tell: &Tell, now: Timestamp) {
        let state = self.state();
        let Some(pod) = state.pods.get(uid).filter(|pod| pod.sent) else {
            return;
        };
        let resident = pod.resident.clone();
        let decided = resident.decided.load();
        match (&decided.standing, outcome) {
            (Standing::Denied { denial, .. }, NoticeOutcome::Denied) => {
                tell.denied(&resident, denial, now);
            }
            (Standing::Allowed(allowed), NoticeOutcome::Audited) => {
                for denial in &allowed.audited {
                    tell.audited(&resident, denial, now);
                }
            }
            (Standing::Allowed(allowed), NoticeOutcome::Failing) => {
                if let (_, Some(failure)) = allowed.lease.cell().state() {
                    tell.failing(&resident, &allowed.role, &failure, now);
                }
            }
            (Standing::Allowed(allowed), NoticeOutcome::Served { access_key_id }) => {
                let Some(slot) = state.slots.get(allowed.lease.cell().key()) else {
                    return;
                };
                let pushed = slot.pushed.iter().find(|(id, _)| id == access_key_id);
                if let Some((id, _)) = pushed {
                    let uid = resident.workload.uid.clone();
                    tell.ledger().confirm(uid, id.clone(), now);
                }
            }
            _ => {}
        }
    }
}

/// Sessions that the stream began or ceased to use with a change.
#[derive(Debug, Default)]
pub(crate) struct Put {
    pub(crate) begun: Option<Arc<SessionKey>>,
    pub(crate) ended: Option<Arc<SessionKey>>,
}

/// Whether an agent is told the same of both.
fn looks_the_same(one: &Workload, other: &Workload) -> bool {
    one.own_addresses() == other.own_addresses()
        && one.name == other.name
        && one.namespace == other.namespace
        && one.service_account == other.service_account
}

impl State {
    /// One more pod uses the session; returns its number.
    fn take_session(&mut self, lease: Arc<Lease>) -> u64 {
        let key = lease.cell().shared_key();
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.users += 1;
            return slot.number;
        }
        self.last_number += 1;
        let number = self.last_number;
        self.keys.insert(number, key.clone());
        let slot = Slot {
            number,
            lease,
            users: 1,
            sent: false,
            pushed: Vec::new(),
        };
        self.slots.insert(key, slot);
        number
    }

    /// The session of this number, if the stream uses it.
    fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(self.keys.get(&number)?)
    }

    /// The key, if the session has just come into use.
    fn began(&self, number: u64) -> Option<Arc<SessionKey>> {
        let slot = self.slot(number)?;
        (slot.users == 1 && !slot.sent).then(|| slot.lease.cell().shared_key())
    }

    /// One pod uses it less; returns the key if that was the last.
    fn leave_session(&mut self, number: u64) -> Option<Arc<SessionKey>> {
        let key = self.keys.get(&number)?.clone();
        let slot = self.slots.get_mut(&key)?;
        slot.users -= 1;
        if slot.users > 0 {
            return None;
        }
        if slot.sent {
            self.ended.push(number);
        }
        self.new_sessions.remove(&number);
        self.slots.remove(&key);
        self.keys.remove(&number);
        Some(key)
    }

    fn has_news(&self) -> bool {
        !self.new_pods.is_empty()
            || !self.new_sessions.is_empty()
            || !self.gone.is_empty()
            || !self.ended.is_empty()
            || self.complete == Completeness::Due
    }

    /// The next message. What goes to which pods with it is added to `handed`.
    fn take(&mut self, handed: &mut Vec<(Arc<Resident>, Pushed)>) -> v1::Update {
        let mut update = v1::Update::default();
        while update.residents.len() < PORTION
            && let Some(uid) = self.new_pods.pop_first()
        {
            let Some(pod) = self.pods.get_mut(&uid) else {
                continue;
            };
            pod.sent = true;
            update.residents.push(message(pod));
            let Some(number) = pod.session else { continue };
            let resident = pod.resident.clone();
            update.sessions.extend(self.introduce(number));
            if let Some(pushed) = self.slot(number).and_then(|slot| slot.pushed.last()) {
                handed.push((resident, pushed.clone()));
            }
        }
        while update.sessions.len() < PORTION
            && let Some(number) = self.new_sessions.pop_first()
        {
            let key = self.keys.get(&number);
            if let Some(slot) = key.and_then(|key| self.slots.get_mut(key)) {
                update.sessions.push(slot.message());
                let Some(pushed) = slot.pushed.last() else {
                    continue;
                };
                let users = self.pods.values().filter(|pod| pod.session == Some(number));
                let users = users.filter(|pod| pod.sent);
                handed.extend(users.map(|pod| (pod.resident.clone(), pushed.clone())));
            }
        }
        // What is gone comes last, when nothing refers to it any more.
        if self.new_pods.is_empty() && self.new_sessions.is_empty() {
            let gone = std::iter::from_fn(|| self.gone.pop_first());
            update.gone = gone.take(GONE).map(|uid| uid.to_string()).collect();
            let ended = self.ended.len().min(GONE);
            update.ended = self.ended.drain(..ended).collect();
            if self.gone.is_empty() && self.ended.is_empty() && self.complete == Completeness::Due {
                self.complete = Completeness::Sent;
                update.complete = true;
            }
        }
        update
    }

    /// The session's first message, with its key, unless the agent knows it.
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

impl Slot {
    /// The session as it is now.
    fn message(&mut self) -> v1::Session {
        let (session, failure) = self.lease.cell().state();
        let credentials = session.map(|session| {
            let id: Arc<str> = session.access_key_id.as_str().into();
            if self.pushed.last().is_none_or(|(last, _)| *last != id) {
                self.pushed.push((id, session.life));
                if self.pushed.len() > 2 {
                    self.pushed.remove(0);
                }
            }
            let document = session.document.bytes();
            v1::Credentials::new(&session.access_key_id, &document, session.life)
        });
        v1::Session {
            number: self.number,
            key: None,
            credentials,
            failure: failure.as_ref().map(Into::into),
        }
    }
}

fn message(pod: &Pod) -> v1::Resident {
    use v1::resident::Standing as Said;
    let workload = &pod.resident.workload;
    let decided = pod.resident.decided.load();
    let standing = match &decided.standing {
        Standing::Allowed(allowed) => Said::Allowed(v1::Allowed {
            session: pod.session.unwrap_or_default(),
            listed: String::from_utf8_lossy(&allowed.listed).into_owned(),
            rules: allowed.rules.to_vec(),
            audited: allowed.audited.iter().map(Into::into).collect(),
        }),
        Standing::Denied { denial, .. } => Said::Denied(denial.into()),
        Standing::NoRole => Said::NoRole(v1::Nothing {}),
        Standing::Undecided => Said::Undecided(v1::Nothing {}),
    };
    let address = |address: &IpAddr| wire::address_bytes(*address);
    v1::Resident {
        uid: workload.uid.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        service_account: workload.service_account.to_string(),
        addresses: workload.own_addresses().iter().map(address).collect(),
        standing: Some(standing),
    }
}

#[cfg(test)]
mod tests;
