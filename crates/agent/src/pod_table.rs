//! The pod table: the owner of each address on this node and the pod of each UID, with their
//! authorization.
//!
//! One writer ([`crate::pod_reconciler`]) updates it, and many readers never wait for it. The table
//! is sharded, so that a change on a large node copies a small part of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rolegate_authorizer::pod::PodEntry;
use tokio::sync::watch;

use sharded::ShardedMap;

mod sharded;
pub(crate) mod writer;

/// The owner of an address.
#[derive(Debug, Clone)]
pub enum Owner {
    /// One pod.
    Pod(Arc<PodEntry>),
    /// Several live pods claim the address, so none of them gets credentials.
    Disputed,
}

/// The table of address owners and pods. Share it with an [`Arc`].
#[derive(Debug)]
pub struct PodTable {
    owners: ShardedMap<IpAddr, Owner>,
    pods: ShardedMap<Arc<str>, Arc<PodEntry>>,
    version: watch::Sender<u64>,
    synced: AtomicBool,
}

impl Default for PodTable {
    fn default() -> Self {
        Self {
            owners: ShardedMap::default(),
            pods: ShardedMap::default(),
            version: watch::Sender::new(0),
            synced: AtomicBool::new(false),
        }
    }
}

impl PodTable {
    /// Returns the owner of `address`, if any.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.owners.get(&address)
    }

    /// Returns the pod with a UID, for callers that prove their pod by a token and not by their
    /// address.
    pub fn pod(&self, uid: &str) -> Option<Arc<PodEntry>> {
        self.pods.get(uid)
    }

    /// Returns true if all inputs of decisions have synced: pods, namespaces and the agent's own
    /// roles. Until then no denial is final, and no credentials are served.
    pub fn has_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Subscribes to changes of owners and of [`Self::has_synced`].
    pub fn changes(&self) -> Changes {
        Changes(self.version.subscribe())
    }

    /// Returns all owners, for views such as `/debug/store`.
    pub fn pods(&self) -> Vec<(IpAddr, Owner)> {
        self.owners.entries()
    }

    /// Replaces the owners of these addresses and these pods; `None` removes an entry. Waiting
    /// requests are woken once, after both: one may wait for a pod without addresses by its UID.
    pub(crate) fn publish(
        &self,
        owners: Vec<(IpAddr, Option<Owner>)>,
        pods: Vec<(Arc<str>, Option<Arc<PodEntry>>)>,
    ) {
        if owners.is_empty() && pods.is_empty() {
            return;
        }
        self.pods.update::<str>(pods);
        self.owners.update::<IpAddr>(owners);
        self.touch();
    }

    /// Wakes the requests that wait for a decision.
    pub(crate) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Sets whether all inputs of decisions have synced.
    pub(crate) fn set_synced(&self, synced: bool) {
        if self.synced.swap(synced, Ordering::AcqRel) != synced {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

/// A subscription to the changes of a pod table.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Waits for the next change. Never returns if the pod table is gone.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_waiter_is_woken_by_each_change_and_by_nothing_else() {
        let pod_table = PodTable::default();
        let mut changes = pod_table.changes();
        let mut woken = || changes.next().now_or_never().is_some();
        assert!(!woken());
        pod_table.touch();
        assert!(woken() && !woken());
        pod_table.set_synced(false);
        assert!(!woken());
        for synced in [true, false] {
            pod_table.set_synced(synced);
            assert_eq!(pod_table.has_synced(), synced);
            assert!(woken());
            pod_table.set_synced(synced);
            assert!(!woken());
        }
        pod_table.publish(Vec::new(), Vec::new());
        assert!(!woken());
        let address = IpAddr::from([10, 0, 0, 1]);
        pod_table.publish(vec![(address, Some(Owner::Disputed))], Vec::new());
        assert!(woken());
        assert!(matches!(pod_table.owner(address), Some(Owner::Disputed)));
        pod_table.publish(vec![(address, None)], Vec::new());
        assert!(woken() && pod_table.owner(address).is_none());
    }
}
