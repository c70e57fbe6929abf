//! The picture: which pod has which address on this node, and what it may have.
//!
//! One writer ([`crate::director`]), many readers that never wait for it. The table is split by
//! address, so that a change on a large node copies a small part of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use rolegate_standing::resident::Resident;
use tokio::sync::watch;

const SHARDS: usize = 64;

/// Who has an address.
#[derive(Debug, Clone)]
pub enum Owner {
    /// One pod.
    Pod(Arc<Resident>),
    /// Several live pods claim it: none of them gets anything.
    Disputed,
}

type Shard = HashMap<IpAddr, Owner>;

/// The table of owners. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Picture {
    shards: Box<[ArcSwap<Shard>]>,
    version: watch::Sender<u64>,
    settled: AtomicBool,
}

impl Default for Picture {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            version: watch::Sender::new(0),
            settled: AtomicBool::new(false),
        }
    }
}

impl Picture {
    /// Who has `address`, if anybody.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.shard(address)
            .and_then(|shard| shard.get(&address).cloned())
    }

    /// Whether everything that decisions depend on has been seen: pods, namespaces and our own
    /// roles. Before that nobody is refused for good, and nobody gets credentials.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Follows changes: of any owner, and of [`Self::is_settled`].
    pub fn changes(&self) -> Changes {
        Changes(self.version.subscribe())
    }

    /// All residents, for mirrors such as `/debug/store`.
    pub fn residents(&self) -> Vec<(IpAddr, Owner)> {
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

    /// Replaces the owners of these addresses; `None` removes.
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

    /// Says that decisions may be others now, to requests that wait for one.
    pub(crate) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Says whether everything has been seen.
    pub(crate) fn settle(&self, settled: bool) {
        if self.settled.swap(settled, Ordering::AcqRel) != settled {
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn index(address: IpAddr) -> usize {
        // Where an address lies costs nobody anything, so it need not be hard to foresee.
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

/// Follows the changes of a picture.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Returns after the next change; never if the picture is gone.
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
        let picture = Picture::default();
        let mut changes = picture.changes();
        let mut woken = || changes.next().now_or_never().is_some();
        assert!(!woken());
        picture.touch();
        assert!(woken() && !woken());
        picture.settle(false);
        assert!(!woken());
        for settled in [true, false] {
            picture.settle(settled);
            assert_eq!(picture.is_settled(), settled);
            assert!(woken());
            picture.settle(settled);
            assert!(!woken());
        }
        picture.publish(Vec::new());
        assert!(!woken());
        let address = IpAddr::from([10, 0, 0, 1]);
        picture.publish(vec![(address, Some(Owner::Disputed))]);
        assert!(woken());
        assert!(matches!(picture.owner(address), Some(Owner::Disputed)));
        picture.publish(vec![(address, None)]);
        assert!(woken() && picture.owner(address).is_none());
    }
}
