//! The picture: which pod has which address on this node, and what it may have.
//!
//! One writer ([`crate::director`]), many readers that never wait for it. The table is split by
//! address, so that a change on a large node copies a small part of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use jiff::Timestamp;
use rolegate_aws::sessions::Lease;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::Denial;
use rolegate_core::workload::Workload;
use tokio::sync::watch;

use crate::pace::Pace;

const SHARDS: usize = 64;

/// A pod with what was decided for it last. A change of the pod makes a new one.
#[derive(Debug)]
pub struct Resident {
    /// The pod.
    pub workload: Arc<Workload>,
    /// What was decided last, which [`crate::decider::Decider::standing`] brings up to date.
    pub(crate) decided: ArcSwap<Decided>,
    /// Keeps what its owner is told of denials to a bearable rate.
    pub told: Pace,
}

/// A decision, and how long it counts.
#[derive(Debug)]
pub struct Decided {
    /// The generation of the rules it was made by.
    pub(crate) generation: u64,
    /// When it must be made again though nothing changed, where rules read the time.
    pub(crate) until: Option<Timestamp>,
    /// What the pod may have.
    pub standing: Standing,
}

impl Decided {
    pub(crate) fn counts(&self, generation: u64, now: Timestamp) -> bool {
        self.generation == generation && self.until.is_none_or(|until| now < until)
    }
}

/// What was decided for a pod.
#[derive(Debug)]
pub enum Standing {
    /// It may have this role.
    Allowed(Allowed),
    /// It wishes for none, and there is no default.
    NoRole,
    /// It is refused.
    Denied {
        /// By which rule.
        denial: Denial,
        /// The sentence for its owner, ready to send.
        body: Bytes,
    },
    /// Something that the decision needs has not been seen yet.
    Undecided,
}

/// A role and its session, ready to serve.
#[derive(Debug)]
pub struct Allowed {
    /// The role.
    pub role: RoleArn,
    /// The name by which the pod is told of it.
    pub listed: Bytes,
    /// The document of `iam/info`.
    pub info: Bytes,
    /// The rules that allowed it.
    pub rules: Vec<String>,
    /// What layers in audit mode would have refused.
    pub audited: Vec<Denial>,
    /// The need of its session, shared by the successive residents of one pod.
    pub lease: Arc<Lease>,
}

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
