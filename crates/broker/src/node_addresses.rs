//! Maps addresses to nodes through the host-network pods that use them.
//!
//! A kubelet can write any address into its own pods, so it can make an address ambiguous, which
//! stops service for the node that owns it. That gains nothing: pods of a node are served to that
//! node's addresses only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rolegate_core::workload::{Phase, Workload};

/// A pod's UID and its node.
type Claim = (Arc<str>, Arc<str>);

/// The addresses of nodes. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct NodeAddresses(Arc<Mutex<HashMap<IpAddr, Vec<Claim>>>>);

impl NodeAddresses {
    /// Adds or updates a pod.
    pub(crate) fn put(&self, before: Option<&Workload>, pod: &Workload) {
        if let Some(before) = before {
            self.remove(before);
        }
        let over = matches!(pod.phase, Phase::Succeeded | Phase::Failed);
        let Some(node) = pod.node.as_ref().filter(|_| is_of_host(pod) && !over) else {
            return;
        };
        let mut node_addresses = self.0.lock();
        for address in &pod.addresses {
            let claims = node_addresses.entry(address.to_canonical()).or_default();
            claims.push((pod.uid.clone(), node.clone()));
        }
    }

    /// Removes a pod.
    pub(crate) fn remove(&self, pod: &Workload) {
        if !is_of_host(pod) {
            return;
        }
        let mut node_addresses = self.0.lock();
        for address in &pod.addresses {
            let address = address.to_canonical();
            if let Some(claims) = node_addresses.get_mut(&address) {
                claims.retain(|(uid, _)| *uid != pod.uid);
                if claims.is_empty() {
                    node_addresses.remove(&address);
                }
            }
        }
    }

    /// Returns the node that has this address, or `None` if no node or several nodes have it.
    pub(crate) fn node_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let node_addresses = self.0.lock();
        let claims = node_addresses.get(&address.to_canonical())?;
        let (_, node) = claims.first()?;
        claims
            .iter()
            .all(|(_, other)| other == node)
            .then(|| node.clone())
    }
}

/// Returns `true` for running host-network pods. Mirror pods are excluded: a kubelet can create any
/// number of them.
fn is_of_host(pod: &Workload) -> bool {
    pod.host_network && !pod.mirror
}

#[cfg(test)]
mod tests {
    use rolegate_core::test_util;

    use super::*;

    fn pod(uid: &str, node: &str, address: &str) -> Workload {
        Workload {
            uid: uid.into(),
            node: Some(node.into()),
            addresses: vec![address.parse().unwrap()],
            host_network: true,
            ..test_util::pod(None)
        }
    }

    #[test]
    fn an_address_is_of_the_one_node_whose_pods_have_it() {
        let node_addresses = NodeAddresses::default();
        let node = |address: &str| node_addresses.node_of(address.parse().unwrap());
        let one = pod("one", "node-1", "192.0.2.1");
        node_addresses.put(None, &one);
        node_addresses.put(None, &pod("other", "node-1", "192.0.2.1"));
        node_addresses.put(None, &pod("two", "node-2", "192.0.2.2"));
        assert_eq!(node("192.0.2.1").as_deref(), Some("node-1"));
        assert_eq!(node("::ffff:192.0.2.2").as_deref(), Some("node-2"));
        assert_eq!(node("192.0.2.3"), None);

        // Finished pods and pods with their own network are ignored.
        for pod in [
            Workload {
                host_network: false,
                ..pod("a", "node-3", "192.0.2.3")
            },
            Workload {
                mirror: true,
                ..pod("b", "node-3", "192.0.2.3")
            },
            Workload {
                phase: Phase::Failed,
                ..pod("c", "node-3", "192.0.2.3")
            },
            Workload {
                node: None,
                ..pod("d", "node-3", "192.0.2.3")
            },
        ] {
            node_addresses.put(None, &pod);
            assert_eq!(node("192.0.2.3"), None, "{pod:?}");
        }

        // A kubelet claims a foreign address: the address is ambiguous until it stops, and never
        // maps to that kubelet's node alone.
        let honest = pod("liar", "node-2", "192.0.2.2");
        let lie = pod("liar", "node-2", "192.0.2.1");
        node_addresses.put(Some(&honest), &lie);
        assert_eq!(node("192.0.2.1"), None);
        node_addresses.put(Some(&lie), &honest);
        assert_eq!(node("192.0.2.1").as_deref(), Some("node-1"));
        node_addresses.remove(&one);
        node_addresses.remove(&pod("other", "node-1", "192.0.2.1"));
        assert_eq!(node("192.0.2.1"), None);
    }
}
