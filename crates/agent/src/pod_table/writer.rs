//! The writer of the pod table: the node's pods by UID, and by the addresses that they claim.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_authorizer::pod::PodEntry;
use rolegate_runtime::logging::list;
use tracing::warn;

use crate::address_verifier::AddressVerifier;
use crate::metrics::AgentMetrics;
use crate::pod_table::{Owner, PodTable};

/// The node's pods.
#[derive(Debug)]
pub(crate) struct PodTableWriter {
    pod_table: Arc<PodTable>,
    verifier: AddressVerifier,
    metrics: AgentMetrics,
    /// The pods by UID.
    pods: HashMap<Arc<str>, Arc<PodEntry>>,
    /// The UIDs of live pods that claim an address.
    claims: HashMap<IpAddr, Vec<Arc<str>>>,
    disputed: HashSet<IpAddr>,
    /// The addresses and pods that changed since the last [`Self::publish`].
    touched: Touched,
}

/// Addresses whose owner may have changed, and pods that have changed.
#[derive(Debug, Default)]
struct Touched {
    addresses: HashSet<IpAddr>,
    uids: HashSet<Arc<str>>,
}

impl PodTableWriter {
    /// Creates a writer without pods for an empty pod table.
    pub(crate) fn new(
        pod_table: Arc<PodTable>,
        verifier: AddressVerifier,
        metrics: AgentMetrics,
    ) -> Self {
        Self {
            pod_table,
            verifier,
            metrics,
            pods: HashMap::new(),
            claims: HashMap::new(),
            disputed: HashSet::new(),
            touched: Touched::default(),
        }
    }

    /// Returns the pod with a UID.
    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<PodEntry>> {
        self.pods.get(uid)
    }

    /// Returns the number of pods.
    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Returns all pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<PodEntry>> {
        self.pods.values()
    }

    /// Returns whether there are neither pods nor claims.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.pods.is_empty()
    }

    /// Adds or replaces a pod. Readers see it after the next [`Self::publish`].
    pub(crate) fn put(&mut self, entry: Arc<PodEntry>) {
        let before = self.pods.get(&entry.workload.uid).cloned();
        if let Some(before) = &before {
            self.unclaim(before);
        }
        let own = entry.workload.own_addresses();
        if before.is_none_or(|before| before.workload.own_addresses() != own) {
            self.verifier.seen(&entry.workload, own);
        }
        for address in own {
            let claims = self.claims.entry(*address).or_default();
            claims.push(entry.workload.uid.clone());
            self.touched.addresses.insert(*address);
        }
        self.touched.uids.insert(entry.workload.uid.clone());
        self.pods.insert(entry.workload.uid.clone(), entry);
    }

    /// Removes a pod.
    pub(crate) fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.pods.remove(uid) {
            self.verifier.forget(uid);
            self.unclaim(&entry);
            self.touched.uids.insert(entry.workload.uid.clone());
        }
    }

    /// Removes all pods except those that `kept` accepts.
    pub(crate) fn keep(&mut self, kept: impl Fn(&str) -> bool) {
        let gone: Vec<_> = self.pods.keys().filter(|uid| !kept(uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    fn unclaim(&mut self, entry: &PodEntry) {
        for address in entry.workload.own_addresses() {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|uid| *uid != entry.workload.uid);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
            self.touched.addresses.insert(*address);
        }
    }

    /// Publishes all changes since the last call in the pod table.
    pub(crate) fn publish(&mut self) {
        let Touched { addresses, uids } = std::mem::take(&mut self.touched);
        let mut changes = Vec::with_capacity(addresses.len());
        for address in addresses {
            let claims = self.claims.get(&address).map_or(&[][..], Vec::as_slice);
            let owner = match claims {
                [] => None,
                [uid] => self.pods.get(uid).cloned().map(Owner::Pod),
                _ => Some(Owner::Disputed),
            };
            if matches!(owner, Some(Owner::Disputed)) {
                if self.disputed.insert(address) {
                    let pods = claims.iter().filter_map(|uid| self.pods.get(uid));
                    let names =
                        pods.map(|pod| format!("{}/{}", pod.workload.namespace, pod.workload.name));
                    warn!(
                        %address,
                        pods = list(names),
                        "several live pods claim one address: none of them gets credentials"
                    );
                }
            } else {
                self.disputed.remove(&address);
            }
            changes.push((address, owner));
        }
        let pods = uids.into_iter().map(|uid| {
            let entry = self.pods.get(&uid).cloned();
            (uid, entry)
        });
        self.pod_table.publish(changes, pods.collect());
        self.metrics.set_pods(self.pods.len(), self.disputed.len());
    }
}
