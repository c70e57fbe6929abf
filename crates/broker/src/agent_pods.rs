//! Indexes the agents' own pods, against which the broker checks pod-bound tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rolegate_core::workload::Workload;
use tokio::sync::watch;

use crate::identity::{AgentAccount, is_live_agent};

/// The pods of the agents' service account. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct Agents {
    account: Arc<AgentAccount>,
    pods: Arc<Mutex<Pods>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<Arc<str>, Arc<Workload>>,
    /// The number of pods at each address.
    addresses: HashMap<IpAddr, usize>,
}

impl Pods {
    fn insert(&mut self, pod: &Arc<Workload>) {
        self.remove(&pod.uid);
        for address in &pod.addresses {
            *self.addresses.entry(address.to_canonical()).or_default() += 1;
        }
        self.by_uid.insert(pod.uid.clone(), pod.clone());
    }

    fn remove(&mut self, uid: &str) -> bool {
        let Some(gone) = self.by_uid.remove(uid) else {
            return false;
        };
        for address in &gone.addresses {
            let address = address.to_canonical();
            if let Some(pods) = self.addresses.get_mut(&address) {
                *pods -= 1;
                if *pods == 0 {
                    self.addresses.remove(&address);
                }
            }
        }
        true
    }
}

impl Agents {
    /// Creates an empty index for this service account.
    pub fn new(account: AgentAccount) -> Self {
        Self {
            account: Arc::new(account),
            pods: Arc::default(),
            changes: Arc::default(),
        }
    }

    /// Returns the agents' service account and token requirements.
    pub fn account(&self) -> &AgentAccount {
        &self.account
    }

    /// Returns the agent's pod with this UID.
    pub fn get(&self, uid: &str) -> Option<Arc<Workload>> {
        self.pods().by_uid.get(uid).cloned()
    }

    /// Returns whether an agent's pod has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let pods = self.pods();
        pods.addresses.contains_key(&address.to_canonical())
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock()
    }

    /// Returns a receiver that is notified of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Adds or updates a pod. Returns `true` if the pod is, or was, an agent's.
    pub(crate) fn put(&self, pod: &Arc<Workload>) -> bool {
        let live = is_live_agent(pod, &self.account);
        let changed = if live {
            self.pods().insert(pod);
            true
        } else {
            self.pods().remove(&pod.uid)
        };
        if changed {
            self.changes.send_modify(|version| *version += 1);
        }
        changed
    }

    /// Removes a pod. Returns `true` if it was an agent's.
    pub(crate) fn remove(&self, uid: &str) -> bool {
        self.pods().remove(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::{account, agent, peer};

    #[test]
    fn addresses_belong_to_running_agent_pods() {
        let agents = Agents::new(account());
        assert!(!agents.has_address(peer()));
        let one = Arc::new(agent());
        let other = Arc::new(Workload {
            uid: "uid-other".into(),
            ..agent()
        });
        assert!(agents.put(&one) && agents.put(&other) && agents.put(&one));
        assert!(agents.has_address(peer()) && !agents.has_address([192, 0, 2, 9].into()));
        assert!(agents.has_address("::ffff:192.0.2.1".parse().unwrap()));
        assert!(agents.remove(&one.uid));
        assert!(agents.has_address(peer()), "another agent's pod has it too");
        let moved = Arc::new(Workload {
            addresses: vec![[192, 0, 2, 9].into()],
            ..(*other).clone()
        });
        agents.put(&moved);
        assert!(!agents.has_address(peer()) && agents.has_address([192, 0, 2, 9].into()));
        assert!(agents.remove(&other.uid) && !agents.remove(&other.uid));
        assert!(agents.pods().addresses.is_empty());
    }
}
