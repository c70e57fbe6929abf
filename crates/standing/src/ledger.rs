//! The ledger: which session went to which pod, for whoever holds a CloudTrail record and asks
//! whose access key that is. It is bounded, in memory, and holds no secret; each entry is also a
//! line in the log, which lives longer.
//!
//! A broker writes what it sends to a node for a pod, whatever the agent there says of it: a
//! stolen agent that stays silent hides nothing. That a pod has asked for it is added.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rolegate_core::session::{Life, SessionKey};
use rolegate_core::workload::Workload;
use rolegate_runtime::logging::list;
use serde::{Deserialize, Serialize};

use crate::resident::Allowed;

/// Entries that are kept unless told otherwise.
pub const ENTRIES: usize = 20_000;

/// A session that goes to a pod, or to its node for it.
#[derive(Debug, Clone, Copy)]
pub struct Handed<'a> {
    /// The pod.
    pub pod: &'a Workload,
    /// Why it may have the session's role.
    pub allowed: &'a Allowed,
    /// `AccessKeyId`.
    pub access_key_id: &'a Arc<str>,
    /// From the call until STS's `Expiration`.
    pub life: Life,
}

/// One pod, and a session. Of the pod it holds what is shown, and not the rest: a tenant's labels
/// would stay long after the pod.
#[derive(Debug, Clone)]
struct Entry {
    at: Timestamp,
    served: Option<Timestamp>,
    namespace: Arc<str>,
    pod: Arc<str>,
    pod_uid: Arc<str>,
    service_account: Arc<str>,
    node: Option<Arc<str>>,
    key: Arc<SessionKey>,
    access_key_id: Arc<str>,
    life: Life,
    rules: Arc<[String]>,
}

/// An entry, as it is shown. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When it went to the pod, or to its node for it.
    pub at: Timestamp,
    /// When the pod got it for the first time, as far as is known.
    pub served: Option<Timestamp>,
    /// `AccessKeyId`, by which CloudTrail names the session's calls.
    pub access_key_id: String,
    /// The role's ARN.
    pub role: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// When STS was asked for it.
    pub issued: Timestamp,
    /// STS's `Expiration`.
    pub expires: Timestamp,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod's node.
    pub node: Option<String>,
    /// The rules that allowed it.
    pub rules: Vec<String>,
}

impl From<&Entry> for Record {
    fn from(entry: &Entry) -> Self {
        Self {
            at: entry.at,
            served: entry.served,
            access_key_id: entry.access_key_id.to_string(),
            role: entry.key.role.to_string(),
            session_name: entry.key.name.to_string(),
            issued: entry.life.from,
            expires: entry.life.until,
            namespace: entry.namespace.to_string(),
            pod: entry.pod.to_string(),
            pod_uid: entry.pod_uid.to_string(),
            service_account: entry.service_account.to_string(),
            node: entry.node.as_deref().map(Into::into),
            rules: entry.rules.to_vec(),
        }
    }
}

/// The last entries. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Book {
    entries: VecDeque<Entry>,
    /// How many went before the first of them.
    gone: usize,
    /// Each entry's place, those gone counted. One entry for each: who opens a stream again and
    /// again doesn't push out the others.
    places: HashMap<Id, usize>,
}

/// A pod's UID and an access key's ID.
type Id = (Arc<str>, Arc<str>);

impl Book {
    fn find(&mut self, id: &Id) -> Option<&mut Entry> {
        let place = self.places.get(id)?;
        self.entries.get_mut(place.checked_sub(self.gone)?)
    }

    fn push(&mut self, id: Id, entry: Entry, most: usize) {
        if self.entries.len() >= most
            && let Some(gone) = self.entries.pop_front()
        {
            self.gone += 1;
            self.places.remove(&(gone.pod_uid, gone.access_key_id));
        }
        self.places.insert(id, self.gone + self.entries.len());
        self.entries.push_back(entry);
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(ENTRIES)
    }
}

impl Ledger {
    /// An empty one that keeps the last `most` entries.
    pub fn new(most: usize) -> Self {
        // Room for all at once is not used before it is needed; growing would take twice of it.
        let book = Book {
            entries: VecDeque::with_capacity(most.min(ENTRIES)),
            ..Book::default()
        };
        Self {
            book: Arc::new(Mutex::new(book)),
            most,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes that a session is sent to a pod's node, here and in the log, once for each pod and
    /// session.
    pub fn sent(&self, handed: Handed<'_>, now: Timestamp) {
        self.write(handed, now, None, "session sent to the pod's node");
    }

    /// Writes that a pod is handed a session, here and in the log, once for each pod and session.
    pub fn served(&self, handed: Handed<'_>, now: Timestamp) {
        self.write(handed, now, Some(now), "session handed to the pod");
    }

    /// Adds to what was sent, if it is still here, that the pod has got it.
    pub fn confirm(&self, pod_uid: Arc<str>, access_key_id: Arc<str>, now: Timestamp) {
        if let Some(entry) = self.book().find(&(pod_uid, access_key_id)) {
            entry.served.get_or_insert(now);
        }
    }

    fn write(
        &self,
        handed: Handed<'_>,
        now: Timestamp,
        served: Option<Timestamp>,
        what: &'static str,
    ) {
        let pod = handed.pod;
        let id = (pod.uid.clone(), handed.access_key_id.clone());
        {
            let mut book = self.book();
            if let Some(entry) = book.find(&id) {
                entry.served = entry.served.or(served);
                return;
            }
            let entry = Entry {
                at: now,
                served,
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                pod_uid: pod.uid.clone(),
                service_account: pod.service_account.clone(),
                node: pod.node.clone(),
                key: handed.allowed.lease.cell().shared_key(),
                access_key_id: handed.access_key_id.clone(),
                life: handed.life,
                rules: handed.allowed.rules.clone(),
            };
            book.push(id, entry, self.most);
        }
        log(handed, what);
    }

    /// The entries about an access key, or all, newest first.
    pub fn records(&self, access_key_id: Option<&str>) -> Vec<Record> {
        let book = self.book();
        let wanted = |entry: &&Entry| access_key_id.is_none_or(|key| *entry.access_key_id == *key);
        let entries = book.entries.iter().rev();
        entries.filter(wanted).map(Into::into).collect()
    }
}

fn log(handed: Handed<'_>, what: &'static str) {
    let Handed {
        pod,
        allowed,
        access_key_id,
        life,
    } = handed;
    let key = allowed.lease.cell().key();
    tracing::info!(
        access_key_id = &**access_key_id,
        role = %key.role,
        session = %key.name,
        namespace = %pod.namespace,
        pod = %pod.name,
        pod_uid = %pod.uid,
        service_account = %pod.service_account,
        node = pod.node.as_deref(),
        issued = %life.from,
        expires = %life.until,
        rules = list(allowed.rules.iter()),
        "{what}"
    );
}
