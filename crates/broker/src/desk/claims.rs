//! Which pods say of which address that it is theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_core::workload::Workload;

/// All claims. Two pods of one node are its agent's to judge, pods of two nodes are an alarm.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<IpAddr, Vec<Arc<Workload>>>);

impl Claims {
    /// A pod claims its addresses. Returns each that a pod of another node claims too, with one
    /// such pod.
    pub(super) fn put(&mut self, pod: &Arc<Workload>) -> Vec<(IpAddr, Arc<Workload>)> {
        let mut clashes = Vec::new();
        for address in pod.own_addresses() {
            let claimants = self.0.entry(*address).or_default();
            let other = claimants.iter().find(|other| other.node != pod.node);
            clashes.extend(other.map(|other| (*address, other.clone())));
            claimants.push(pod.clone());
        }
        clashes
    }

    /// It claims them no more.
    pub(super) fn remove(&mut self, pod: &Workload) {
        for address in pod.own_addresses() {
            if let Some(claimants) = self.0.get_mut(address) {
                claimants.retain(|other| other.uid != pod.uid);
                if claimants.is_empty() {
                    self.0.remove(address);
                }
            }
        }
    }
}
