//! The pod table: the owner of each address on this node, and its authorization.
//!
//! One writer ([`crate::pod_reconciler`]) updates it, and many readers never wait for it. The table
//! is sharded by address, so that a change on a large node copies a small part of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use rolegate_authorizer::pod::PodEntry;
use tokio::sync::watch;

pub(crate) mod writer;

const SHARDS: usize = 64;

/// The owner of an address.
#[derive(Debug, Clone)]
pub enum Owner {
    /// One pod.
    Pod(Arc<PodEntry>),
    /// Several live pods claim the address, so none of them gets credentials.
    Disputed,
}

type Shard = HashMap<IpAddr, Owner>;

/// The table of address owners. Share it with an [`Arc`].
#[derive(Debug)]
pub struct PodTable {
    shards: Box<[ArcSwap<Shard>]>,
    version: watch::Sender<u64>,
    settled: AtomicBool,
}

impl Default for PodTable {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            version: watch::Sender::new(0),
            settled: AtomicBool::new(false),
        }
    }
}

impl PodTable {
    /// Returns the owner of `address`, if any.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.shard(address)
            .and_then(|shard| shard.get(&address).cloned())
    }

    /// Returns whether all inputs of decisions are loaded: pods, namespaces and the agent's own
    /// roles. Until then no denial is final, and no credentials are served.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Subscribes to changes of owners and of [`Self::is_settled`].
    pub fn changes(&self) -> Changes {
        Changes(self.version.subscribe())
    }

    /// Returns all owners, for views such as `/debug/store`.
    pub fn pods(&self) -> Vec<(IpAddr, Owner)> {
        self.shards
            .iter()
            .flat_map(|shard| {
                let shard = shard.load();
                shard
                    .iter()
                    .map(|(address, owner)| (*address, owner.clone()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Replaces the owners of these addresses; `None` removes an owner.
    pub(crate) fn publish(&self, changes: Vec<(IpAddr, Option<Owner>)>) {
        let mut by_shard: HashMap<usize, Vec<_>> = HashMap::new();
        for (address, owner) in changes {
            by_shard
                .entry(Self::index(address))
                .or_default()
                .push((address, owner));
        }
        if by_shard.is_empty() {
            return;
        }
        for (index, changes) in by_shard {
            let Some(slot) = self.shards.get(index) else {
                continue;
            };
            let mut shard = Shard::clone(&slot.load());
            for (address, owner) in changes {
                match owner {
                    Some(owner) => shard.insert(address, owner),
                    None => shard.remove(&address),
                };
            }
            slot.store(Arc::new(shard));
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Wakes the requests that wait for a decision.
    pub(crate) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Sets whether all inputs of decisions are loaded.
    pub(crate) fn settle(&self, settled: bool) {
        if self.settled.swap(settled, Ordering::AcqRel) != settled {
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn index(address: IpAddr) -> usize {
        // The shard of an address affects no security property, so the hash may be predictable.
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let folded = bits ^ (bits >> 64);
        let mixed = (folded ^ (folded >> 8) ^ (folded >> 16)) % (SHARDS as u128);
        usize::try_from(mixed).unwrap_or_default()
    }

    fn shard(&self, address: IpAddr) -> Option<Guard<Arc<Shard>>> {
        self.shards.get(Self::index(address)).map(ArcSwap::load)
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
        pod_table.settle(false);
        assert!(!woken());
        for settled in [true, false] {
            pod_table.settle(settled);
            assert_eq!(pod_table.is_settled(), settled);
            assert!(woken());
            pod_table.settle(settled);
            assert!(!woken());
        }
        pod_table.publish(Vec::new());
        assert!(!woken());
        let address = IpAddr::from([10, 0, 0, 1]);
        pod_table.publish(vec![(address, Some(Owner::Disputed))]);
        assert!(woken());
        assert!(matches!(pod_table.owner(address), Some(Owner::Disputed)));
        pod_table.publish(vec![(address, None)]);
        assert!(woken() && pod_table.owner(address).is_none());
    }
}
