//! Room for connections: so many in all, and so many of each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts the connections of each address. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Places {
    per_address: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Places {
    pub(super) fn new(per_address: usize) -> Self {
        Self {
            per_address,
            open: Arc::default(),
        }
    }

    /// Room for one more of `address`, given back when dropped; `None`: it has all that it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Place {
            address,
            places: self.clone(),
        })
    }
}

/// Room for one connection.
#[derive(Debug)]
pub(super) struct Place {
    address: IpAddr,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let open = self.places.open.lock();
        let mut open = open.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_room_and_none_is_remembered() {
        let places = Places::new(2);
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        let held = [places.take(one), places.take(one)];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(one).is_none());
        assert!(places.take("::ffff:10.0.0.1".parse().unwrap()).is_none());
        assert!(places.take("10.0.0.2".parse().unwrap()).is_some());
        drop(held);
        assert!(places.open.lock().unwrap().is_empty());
        assert!(places.take(one).is_some());
    }
}
