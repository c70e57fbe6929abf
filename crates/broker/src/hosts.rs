//! Which node an address is of: that of the host-network pods that have it.
//!
//! A kubelet can write any address into its own pods, so it can make an address doubtful, which
//! silences the node that has it. It cannot get anything by that: pods of another node are shown to
//! nobody but that node's addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rolegate_core::workload::{Phase, Workload};

/// A pod's UID, and its node.
type Claim = (Arc<str>, Arc<str>);

/// The addresses of nodes. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<Mutex<HashMap<IpAddr, Vec<Claim>>>>);

impl Hosts {
    /// A pod is new or changed.
    pub(crate) fn put(&self, before: Option<&Workload>, pod: &Workload) {
        if let Some(before) = before {
            self.remove(before);
        }
        let over = matches!(pod.phase, Phase::Succeeded | Phase::Failed);
        let Some(node) = pod.node.as_ref().filter(|_| is_of_host(pod) && !over) else {
            return;
        };
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &pod.addresses {
            let claims = hosts.entry(address.to_canonical()).or_default();
            claims.push((pod.uid.clone(), node.clone()));
        }
    }

    /// A pod is gone.
    pub(crate) fn remove(&self, pod: &Workload) {
        if !is_of_host(pod) {
            return;
        }
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &pod.addresses {
            let address = address.to_canonical();
            if let Some(claims) = hosts.get_mut(&address) {
                claims.retain(|(uid, _)| *uid != pod.uid);
                if claims.is_empty() {
                    hosts.remove(&address);
                }
            }
        }
    }

    /// The one node that has this address; `None` for none, and for several.
    pub(crate) fn node_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = hosts.get(&address.to_canonical())?;
        let (_, node) = claims.first()?;
        claims
            .iter()
            .all(|(_, other)| other == node)
            .then(|| node.clone())
    }
}

/// A mirror pod is not: a kubelet makes as many as it likes.
fn is_of_host(pod: &Workload) -> bool {
    pod.host_network && !pod.mirror
}

#[cfg(test)]
mod tests {
    use rolegate_core::key_values::KeyValues;
    use rolegate_core::workload::Wish;

    use super::*;

    fn pod(uid: &str, node: &str, address: &str) -> Workload {
        Workload {
            namespace: "kube-system".into(),
            name: uid.into(),
            uid: uid.into(),
            node: Some(node.into()),
            service_account: "kiam-agent".into(),
            addresses: vec![address.parse().unwrap()],
            phase: Phase::Running,
            host_network: true,
            mirror: false,
            wish: Wish::default(),
            labels: KeyValues::default(),
            annotations: KeyValues::default(),
        }
    }

    #[test]
    fn an_address_is_of_the_one_node_whose_pods_have_it() {
        let hosts = Hosts::default();
        let node = |address: &str| hosts.node_of(address.parse().unwrap());
        let one = pod("one", "node-1", "192.0.2.1");
        hosts.put(None, &one);
        hosts.put(None, &pod("other", "node-1", "192.0.2.1"));
        hosts.put(None, &pod("two", "node-2", "192.0.2.2"));
        assert_eq!(node("192.0.2.1").as_deref(), Some("node-1"));
        assert_eq!(node("::ffff:192.0.2.2").as_deref(), Some("node-2"));
        assert_eq!(node("192.0.2.3"), None);

        // What isn't of the host's network, or is over, says nothing about it.
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
            hosts.put(None, &pod);
            assert_eq!(node("192.0.2.3"), None, "{pod:?}");
        }

        // A kubelet lies: nobody has the address until it stops, and it is never the liar's alone.
        let honest = pod("liar", "node-2", "192.0.2.2");
        let lie = pod("liar", "node-2", "192.0.2.1");
        hosts.put(Some(&honest), &lie);
        assert_eq!(node("192.0.2.1"), None);
        hosts.put(Some(&lie), &honest);
        assert_eq!(node("192.0.2.1").as_deref(), Some("node-1"));
        hosts.remove(&one);
        hosts.remove(&pod("other", "node-1", "192.0.2.1"));
        assert_eq!(node("192.0.2.1"), None);
    }
}
