//! Tracks which pods claim which address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_core::workload::Workload;

/// All address claims. The agent of a node handles conflicts between its own pods; a conflict
/// between pods of two nodes is reported.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<IpAddr, Vec<Arc<Workload>>>);

impl Claims {
    /// Adds the addresses of a pod. Returns each address that a pod of another node claims too,
    /// with one such pod.
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

    /// Removes the addresses of a pod.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::{agent, peer};

    #[test]
    fn an_address_that_pods_of_two_nodes_claim_is_told() {
        let pod = |uid: &str, node: &str| {
            Arc::new(Workload {
                uid: uid.into(),
                node: Some(node.into()),
                host_network: false,
                addresses: vec![peer()],
                ..agent()
            })
        };
        let (one, neighbor, far) = (pod("1", "a"), pod("2", "a"), pod("3", "b"));
        let mut claims = Claims::default();
        assert_eq!(claims.put(&one), []);
        assert_eq!(claims.put(&neighbor), []);
        assert_eq!(claims.put(&far), [(peer(), one.clone())]);
        claims.remove(&one);
        claims.remove(&far);
        assert_eq!(claims.put(&far), [(peer(), neighbor.clone())]);
        claims.remove(&neighbor);
        claims.remove(&far);
        assert!(claims.0.is_empty());
    }
}
