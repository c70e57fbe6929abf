//! Room that nobody can take alone: so many places for each address, or each node.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts the places that each has taken. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Places<K: Eq + Hash> {
    each: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// So many for each.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            taken: Arc::default(),
        }
    }

    /// One more for `whose`, given back when dropped; `None`: it has all that it may.
    pub fn take(&self, whose: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(whose.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        let places = self.clone();
        Some(Place { whose, places })
    }
}

/// One place.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    whose: K,
    places: Places<K>,
}

impl<K: Eq + Hash> Place<K> {
    /// Whose it is.
    pub fn whose(&self) -> &K {
        &self.whose
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let taken = self.places.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_room_and_none_is_remembered() {
        let places = Places::new(2);
        let held = [places.take("one"), places.take("one")];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take("one").is_none());
        assert!(places.take("two").is_some());
        drop(held);
        assert!(places.taken.lock().unwrap().is_empty());
        assert!(places.take("one").is_some());
    }
}
