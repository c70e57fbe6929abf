//! A map in shards that readers never wait for.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

const SHARDS: usize = 64;

/// A key that is spread over the shards.
pub(super) trait ShardKey: Hash + Eq {
    /// Returns a number that determines the shard. It affects no security property, so it may be
    /// predictable.
    fn shard(&self) -> usize;
}

impl ShardKey for IpAddr {
    fn shard(&self) -> usize {
        let bits = match self {
            Self::V4(address) => u128::from(address.to_bits()),
            Self::V6(address) => address.to_bits(),
        };
        let folded = bits ^ (bits >> 64);
        let mixed = (folded ^ (folded >> 8) ^ (folded >> 16)) % (SHARDS as u128);
        usize::try_from(mixed).unwrap_or_default()
    }
}

impl ShardKey for str {
    fn shard(&self) -> usize {
        self.bytes().fold(0, |hash: usize, byte| {
            hash.wrapping_mul(31).wrapping_add(usize::from(byte))
        })
    }
}

/// A map with one writer and many lock-free readers. A change copies the shards of its keys.
#[derive(Debug)]
pub(super) struct ShardedMap<K, V>(Box<[ArcSwap<HashMap<K, V>>]>);

impl<K, V> Default for ShardedMap<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::from_pointee(HashMap::new()));
        Self(shards.collect())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> ShardedMap<K, V> {
    /// Returns the value of a key.
    pub(super) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: ShardKey + ?Sized,
    {
        let shard = self.0.get(key.shard() % SHARDS)?.load();
        shard.get(key).cloned()
    }

    /// Returns all entries.
    pub(super) fn entries(&self) -> Vec<(K, V)> {
        let shards = self.0.iter().map(ArcSwap::load);
        shards
            .flat_map(|shard| {
                let entries = shard
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone()));
                entries.collect::<Vec<_>>()
            })
            .collect()
    }

    /// Sets these values; `None` removes a key.
    pub(super) fn update<Q>(&self, changes: Vec<(K, Option<V>)>)
    where
        K: Borrow<Q>,
        Q: ShardKey + ?Sized,
    {
        let mut by_shard: HashMap<usize, Vec<_>> = HashMap::new();
        for (key, value) in changes {
            let index = key.borrow().shard() % SHARDS;
            by_shard.entry(index).or_default().push((key, value));
        }
        for (index, changes) in by_shard {
            let Some(slot) = self.0.get(index) else {
                continue;
            };
            let mut shard = HashMap::clone(&slot.load());
            for (key, value) in changes {
                match value {
                    Some(value) => shard.insert(key, value),
                    None => shard.remove(key.borrow()),
                };
            }
            slot.store(Arc::new(shard));
        }
    }
}
