//! A limit for each key: at most N permits for each address or node.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts the permits taken for each key. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct KeyedLimiter<K: Eq + Hash> {
    each: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> KeyedLimiter<K> {
    /// Creates a limiter with `each` permits per key.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            taken: Arc::default(),
        }
    }

    /// Takes a permit for `key`, returned when dropped. `None` if the limit is reached.
    pub fn take(&self, key: K) -> Option<Permit<K>> {
        let mut taken = self.taken.lock();
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        let limiter = self.clone();
        Some(Permit { key, limiter })
    }

    /// Returns whether no permit is taken.
    pub fn is_empty(&self) -> bool {
        self.taken.lock().is_empty()
    }
}

/// A permit.
#[derive(Debug)]
pub struct Permit<K: Eq + Hash> {
    key: K,
    limiter: KeyedLimiter<K>,
}

impl<K: Eq + Hash> Permit<K> {
    /// Returns the permit's key.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let taken = self.limiter.taken.lock();
        let mut taken = taken;
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_permits() {
        let limiter = KeyedLimiter::new(2);
        let held = [limiter.take("one"), limiter.take("one")];
        assert!(held.iter().all(Option::is_some));
        assert!(limiter.take("one").is_none());
        assert!(limiter.take("two").is_some());
        drop(held);
        assert!(limiter.is_empty());
        assert!(limiter.take("one").is_some());
    }
}
