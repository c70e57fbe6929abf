//! The ledger: which pod was handed which session, for whoever holds a CloudTrail record and asks
//! whose access key that is. It is bounded, in memory, and holds no secret; each entry is also a
//! line in the log, which lives longer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rolegate_core::session::{Life, SessionKey};
use rolegate_core::workload::Workload;
use serde::{Deserialize, Serialize};

use crate::resident::Allowed;

/// Entries that are kept unless told otherwise.
pub const ENTRIES: usize = 20_000;

/// One pod, and the session that it was handed.
#[derive(Debug, Clone)]
struct Entry {
    at: Timestamp,
    pod: Arc<Workload>,
    key: Arc<SessionKey>,
    access_key_id: Arc<str>,
    life: Life,
    rules: Arc<[String]>,
}

/// An entry, as it is shown. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When the pod got it for the first time.
    pub at: Timestamp,
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
            access_key_id: entry.access_key_id.to_string(),
            role: entry.key.role.to_string(),
            session_name: entry.key.name.to_string(),
            issued: entry.life.from,
            expires: entry.life.until,
            namespace: entry.pod.namespace.to_string(),
            pod: entry.pod.name.to_string(),
            pod_uid: entry.pod.uid.to_string(),
            service_account: entry.pod.service_account.to_string(),
            node: entry.pod.node.as_deref().map(Into::into),
            rules: entry.rules.to_vec(),
        }
    }
}

/// The last entries. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Ledger {
    entries: Arc<Mutex<VecDeque<Entry>>>,
    most: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(ENTRIES)
    }
}

impl Ledger {
    /// An empty one that keeps the last `most` entries.
    pub fn new(most: usize) -> Self {
        Self {
            entries: Arc::default(),
            most,
        }
    }

    /// Writes that `pod` was handed the session of `access_key_id`, here and in the log.
    pub fn served(
        &self,
        pod: &Arc<Workload>,
        allowed: &Allowed,
        (access_key_id, life): (&str, Life),
        now: Timestamp,
    ) {
        let key = allowed.lease.cell().shared_key();
        tracing::info!(
            access_key_id,
            role = %key.role,
            session = %key.name,
            namespace = %pod.namespace,
            pod = %pod.name,
            pod_uid = %pod.uid,
            service_account = %pod.service_account,
            node = pod.node.as_deref(),
            issued = %life.from,
            expires = %life.until,
            rules = ?allowed.rules,
            "session handed out"
        );
        let entry = Entry {
            at: now,
            pod: pod.clone(),
            key,
            access_key_id: access_key_id.into(),
            life,
            rules: allowed.rules.as_slice().into(),
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// The entries about an access key, or all, newest first.
    pub fn records(&self, access_key_id: Option<&str>) -> Vec<Record> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |entry: &&Entry| access_key_id.is_none_or(|key| *entry.access_key_id == *key);
        entries
            .iter()
            .rev()
            .filter(wanted)
            .map(Into::into)
            .collect()
    }
}
