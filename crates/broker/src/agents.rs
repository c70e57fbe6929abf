//! The agents' own pods, by which a token is checked that names one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rolegate_core::workload::Workload;
use tokio::sync::watch;

use crate::identity::{AgentAccount, is_live_agent};

/// The pods of the agents' service account. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Agents {
    account: Arc<AgentAccount>,
    pods: Arc<Mutex<HashMap<Arc<str>, Arc<Workload>>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Agents {
    /// None is known.
    pub fn new(account: AgentAccount) -> Self {
        Self {
            account: Arc::new(account),
            pods: Arc::default(),
            changes: Arc::default(),
        }
    }

    /// Who is taken for an agent.
    pub fn account(&self) -> &AgentAccount {
        &self.account
    }

    /// The agent's pod of this UID.
    pub fn get(&self, uid: &str) -> Option<Arc<Workload>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(uid).cloned()
    }

    /// Follows changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A pod is new or changed. Returns whether it is an agent's, or was.
    pub(crate) fn put(&self, pod: &Arc<Workload>) -> bool {
        let live = is_live_agent(pod, &self.account);
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match live {
            true => {
                pods.insert(pod.uid.clone(), pod.clone());
                true
            }
            false => pods.remove(&pod.uid).is_some(),
        };
        drop(pods);
        if changed {
            self.changes.send_modify(|version| *version += 1);
        }
        changed
    }

    /// A pod is gone. Returns whether it was an agent's.
    pub(crate) fn remove(&self, uid: &str) -> bool {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.remove(uid).is_some()
    }
}
