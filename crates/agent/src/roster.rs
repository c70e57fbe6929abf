//! The roster: the node's pods by UID, and by the addresses that they claim. It writes the picture
//! that doors read.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use rolegate_runtime::logging::list;
use rolegate_standing::resident::Resident;
use tracing::warn;

use crate::guard::Guard;
use crate::metrics::AgentMetrics;
use crate::picture::{Owner, Picture};

/// The node's pods.
#[derive(Debug)]
pub(crate) struct Roster {
    picture: Arc<Picture>,
    guard: Guard,
    metrics: AgentMetrics,
    /// By UID.
    pods: HashMap<Arc<str>, Arc<Resident>>,
    /// The live pods that claim an address, by UID.
    claims: HashMap<IpAddr, Vec<Arc<str>>>,
    disputed: HashSet<IpAddr>,
}

impl Roster {
    /// Nobody, in an empty picture.
    pub(crate) fn new(picture: Arc<Picture>, guard: Guard, metrics: AgentMetrics) -> Self {
        Self {
            picture,
            guard,
            metrics,
            pods: HashMap::new(),
            claims: HashMap::new(),
            disputed: HashSet::new(),
        }
    }

    /// The pod of a UID.
    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<Resident>> {
        self.pods.get(uid)
    }

    /// How many pods there are.
    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// All pods.
    pub(crate) fn residents(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.pods.values()
    }

    /// Whether nothing is left of anybody.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.pods.is_empty()
    }

    /// A pod is new or changed. [`Self::publish`] shows what that touches.
    pub(crate) fn put(&mut self, resident: Arc<Resident>, touched: &mut HashSet<IpAddr>) {
        let before = self.pods.get(&resident.workload.uid).cloned();
        if let Some(before) = &before {
            self.unclaim(before, touched);
        }
        let own = resident.workload.own_addresses();
        if before.is_none_or(|before| before.workload.own_addresses() != own) {
            self.guard.seen(&resident.workload, own);
        }
        for address in own {
            let claims = self.claims.entry(*address).or_default();
            claims.push(resident.workload.uid.clone());
            touched.insert(*address);
        }
        self.pods.insert(resident.workload.uid.clone(), resident);
    }

    /// A pod is gone.
    pub(crate) fn remove(&mut self, uid: &str, touched: &mut HashSet<IpAddr>) {
        if let Some(resident) = self.pods.remove(uid) {
            self.guard.forget(uid);
            self.unclaim(&resident, touched);
        }
    }

    /// All pods are gone but those that `kept` says yes to.
    pub(crate) fn keep(&mut self, kept: impl Fn(&str) -> bool, touched: &mut HashSet<IpAddr>) {
        let gone: Vec<_> = self.pods.keys().filter(|uid| !kept(uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid, touched);
        }
    }

    fn unclaim(&mut self, resident: &Resident, touched: &mut HashSet<IpAddr>) {
        for address in resident.workload.own_addresses() {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|uid| *uid != resident.workload.uid);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
            touched.insert(*address);
        }
    }

    /// Shows in the picture who has these addresses now.
    pub(crate) fn publish(&mut self, touched: HashSet<IpAddr>) {
        let mut changes = Vec::with_capacity(touched.len());
        for address in touched {
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
                        "several live pods have one address: none of them gets credentials"
                    );
                }
            } else {
                self.disputed.remove(&address);
            }
            changes.push((address, owner));
        }
        self.picture.publish(changes);
        self.metrics.set_pods(self.pods.len(), self.disputed.len());
    }
}
