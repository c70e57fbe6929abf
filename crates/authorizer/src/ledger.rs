//! The ledger of sessions, which maps an access key in a CloudTrail record to the pod that received
//! it. It is bounded, in memory, and contains no secrets. Each entry is also logged, and logs are
//! retained longer.
//!
//! A broker records each session that it sends to a node for a pod, regardless of the agent's
//! reports, so a compromised agent cannot hide a session. The agent's report that a pod received
//! the session is added to the entry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use rolegate_core::session::{SessionKey, Validity};
use rolegate_core::workload::Workload;
use rolegate_runtime::logging::list;
use serde::{Deserialize, Serialize};

use crate::pod::{Allowed, Endpoint};

/// Default maximum number of entries.
pub const DEFAULT_ENTRIES: usize = 20_000;

/// A session that was issued to a pod, or to its node on the pod's behalf.
#[derive(Debug, Clone, Copy)]
pub struct Issued<'a> {
    /// The pod.
    pub pod: &'a Workload,
    /// The decision that allows the session.
    pub allowed: &'a Allowed,
    /// The endpoint that serves it.
    pub endpoint: Endpoint,
    /// `AccessKeyId`.
    pub access_key_id: &'a Arc<str>,
    /// The period from the STS call until STS's `Expiration`.
    pub lifetime: Validity,
}

/// A pod and a session. It stores only the displayed fields of the pod; a reference would keep a
/// tenant's labels in memory long after the pod.
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
    lifetime: Validity,
    rules: Arc<[String]>,
    endpoint: Endpoint,
}

/// A displayed entry, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The time at which the session was sent to the node or issued to the pod.
    pub at: Timestamp,
    /// The time at which the pod first received the session; `None` if unknown.
    pub served: Option<Timestamp>,
    /// `AccessKeyId`, which identifies the session's calls in CloudTrail.
    pub access_key_id: String,
    /// The role's ARN.
    pub role: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// The time of the STS call.
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
    /// The rules that allowed the role.
    pub rules: Vec<String>,
    /// The endpoint that serves the session to the pod: the first one, if several do.
    #[serde(default)]
    pub endpoint: Endpoint,
}

impl From<&Entry> for Record {
    fn from(entry: &Entry) -> Self {
        Self {
            at: entry.at,
            served: entry.served,
            access_key_id: entry.access_key_id.to_string(),
            role: entry.key.last_role().to_string(),
            session_name: entry.key.name.to_string(),
            issued: entry.lifetime.not_before,
            expires: entry.lifetime.not_after,
            namespace: entry.namespace.to_string(),
            pod: entry.pod.to_string(),
            pod_uid: entry.pod_uid.to_string(),
            service_account: entry.service_account.to_string(),
            node: entry.node.as_deref().map(Into::into),
            rules: entry.rules.to_vec(),
            endpoint: entry.endpoint,
        }
    }
}

/// The most recent entries. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct Ledger {
    entries: Arc<Mutex<Entries>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Entries {
    entries: VecDeque<Entry>,
    /// The number of entries dropped before the first one.
    gone: usize,
    /// The index of each entry, including dropped ones. A pod and session have a single entry, so
    /// an agent that reconnects repeatedly does not evict others.
    places: HashMap<Id, usize>,
}

/// A pod's UID and an access key ID.
type Id = (Arc<str>, Arc<str>);

impl Entries {
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
        Self::new(DEFAULT_ENTRIES)
    }
}

impl Ledger {
    /// Creates an empty ledger that keeps the last `most` entries.
    pub fn new(most: usize) -> Self {
        // The full capacity is reserved at once, since growing would need up to twice the memory;
        // unused pages are not allocated.
        let entries = Entries {
            entries: VecDeque::with_capacity(most.min(DEFAULT_ENTRIES)),
            ..Entries::default()
        };
        Self {
            entries: Arc::new(Mutex::new(entries)),
            most,
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock()
    }

    /// Records and logs that a session is sent to a pod's node, once for each pod and session.
    pub fn sent(&self, issued: Issued<'_>, now: Timestamp) {
        self.write(issued, now, None, "session sent to the pod's node");
    }

    /// Records and logs that a session is issued to a pod, once for each pod and session.
    pub fn served(&self, issued: Issued<'_>, now: Timestamp) {
        self.write(issued, now, Some(now), "session issued to the pod");
    }

    /// Adds to an existing entry that the pod has received the session.
    pub fn confirm(&self, pod_uid: Arc<str>, access_key_id: Arc<str>, now: Timestamp) {
        if let Some(entry) = self.entries().find(&(pod_uid, access_key_id)) {
            entry.served.get_or_insert(now);
        }
    }

    fn write(
        &self,
        issued: Issued<'_>,
        now: Timestamp,
        served: Option<Timestamp>,
        what: &'static str,
    ) {
        let pod = issued.pod;
        let id = (pod.uid.clone(), issued.access_key_id.clone());
        {
            let mut entries = self.entries();
            if let Some(entry) = entries.find(&id) {
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
                key: issued.allowed.lease.cell().shared_key(),
                access_key_id: issued.access_key_id.clone(),
                lifetime: issued.lifetime,
                rules: issued.allowed.rules.clone(),
                endpoint: issued.endpoint,
            };
            entries.push(id, entry, self.most);
        }
        log(issued, what);
    }

    /// Returns the entries of an access key, or all, newest first.
    pub fn records(&self, access_key_id: Option<&str>) -> Vec<Record> {
        let entries = self.entries();
        let wanted = |entry: &&Entry| access_key_id.is_none_or(|key| *entry.access_key_id == *key);
        let entries = entries.entries.iter().rev();
        entries.filter(wanted).map(Into::into).collect()
    }
}

fn log(issued: Issued<'_>, what: &'static str) {
    let Issued {
        pod,
        allowed,
        endpoint,
        access_key_id,
        lifetime,
    } = issued;
    let key = allowed.lease.cell().key();
    tracing::info!(
        access_key_id = &**access_key_id,
        role = %key.last_role(),
        session = %key.name,
        namespace = %pod.namespace,
        pod = %pod.name,
        pod_uid = %pod.uid,
        service_account = %pod.service_account,
        node = pod.node.as_deref(),
        issued = %lifetime.not_before,
        expires = %lifetime.not_after,
        rules = list(allowed.rules.iter()),
        endpoint = endpoint.as_str(),
        "{what}"
    );
}
