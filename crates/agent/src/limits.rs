//! Limits on connections, waiters and forwarded requests, for each pod and in all, so that one
//! noisy pod costs its neighbours nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

/// Which part of all connections may be those of addresses that are no known pod's.
const STRANGERS_PART: usize = 2;
/// Addresses that are remembered without a connection: more than a node has pods.
const KEPT_PEERS: usize = 2048;

/// How much each pod, and all of them, may take.
#[derive(Debug, Clone, Copy)]
pub struct LimitOptions {
    /// Connections of all pods.
    pub connections: usize,
    /// Connections of one pod.
    pub connections_per_pod: u32,
    /// Requests of one pod that wait for the watch or for STS.
    pub waiters_per_pod: u32,
    /// Requests a second that one pod may have forwarded to the node's metadata service, whose
    /// own limit is shared by the whole node.
    pub forwards_per_second: u32,
    /// The same for all pods together.
    pub forwards_in_all: u32,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_pod: 64,
            waiters_per_pod: 64,
            forwards_per_second: 50,
            forwards_in_all: 200,
        }
    }
}

/// Counts what is in use.
#[derive(Debug)]
pub struct Limits {
    options: LimitOptions,
    connections: AtomicUsize,
    /// Those of addresses that are no known pod's.
    strangers: AtomicUsize,
    forwards: Bucket,
    /// Touched when a connection opens and closes, not for each request.
    peers: Mutex<HashMap<IpAddr, Arc<Peer>>>,
}

/// What one address has in use.
#[derive(Debug)]
struct Peer {
    connections: AtomicU32,
    waiters: AtomicU32,
    forwards: Bucket,
}

/// A bucket that is full again each second.
#[derive(Debug, Default)]
struct Bucket {
    /// The second it was last filled in.
    second: AtomicU64,
    used: AtomicU32,
}

impl Bucket {
    fn take(&self, most: u32, now: Timestamp) -> bool {
        let second = u64::try_from(now.as_second()).unwrap_or_default();
        if self.second.swap(second, Relaxed) != second {
            self.used.store(0, Relaxed);
        }
        self.used.fetch_add(1, Relaxed) < most
    }
}

impl Limits {
    /// Nothing in use.
    pub fn new(options: LimitOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            connections: AtomicUsize::new(0),
            strangers: AtomicUsize::new(0),
            forwards: Bucket::default(),
            peers: Mutex::default(),
        })
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Takes room for a connection of `address`, given back when dropped. `None`: there is none.
    /// Addresses that are no `known` pod's share half of the room, or whoever can make up
    /// addresses could take it all.
    pub fn connect(self: &Arc<Self>, address: IpAddr, known: bool) -> Option<Connection> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let strangers = (self.options.connections / STRANGERS_PART).max(1);
        if self.connections.load(Relaxed) >= self.options.connections
            || (!known && self.strangers.load(Relaxed) >= strangers)
        {
            return None;
        }
        let peer = peers.entry(address).or_insert_with(|| {
            Arc::new(Peer {
                connections: AtomicU32::new(0),
                waiters: AtomicU32::new(0),
                forwards: Bucket::default(),
            })
        });
        if peer.connections.load(Relaxed) >= self.options.connections_per_pod {
            return None;
        }
        peer.connections.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
        self.strangers.fetch_add(usize::from(!known), Relaxed);
        Some(Connection {
            known,
            peer: peer.clone(),
            limits: self.clone(),
        })
    }
}

/// Room for one connection.
#[derive(Debug)]
pub struct Connection {
    known: bool,
    peer: Arc<Peer>,
    limits: Arc<Limits>,
}

impl Connection {
    /// Takes room for a waiter; `None`: too many of this pod's requests wait already.
    pub fn wait(&self) -> Option<Waiter<'_>> {
        let most = self.limits.options.waiters_per_pod;
        self.peer
            .waiters
            .fetch_update(Relaxed, Relaxed, |count| {
                (count < most).then_some(count + 1)
            })
            .ok()
            .map(|_| Waiter(&self.peer))
    }

    /// Whether one more request of this pod may be forwarded in this second.
    pub fn forward(&self, now: Timestamp) -> bool {
        let limits = &self.limits;
        let own = self
            .peer
            .forwards
            .take(limits.options.forwards_per_second, now);
        own && limits.forwards.take(limits.options.forwards_in_all, now)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut peers = self
            .limits
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.limits.connections.fetch_sub(1, Relaxed);
        let strangers = &self.limits.strangers;
        strangers.fetch_sub(usize::from(!self.known), Relaxed);
        self.peer.connections.fetch_sub(1, Relaxed);
        // Kept for a while, or a new connection for each request would be a new bucket each.
        if peers.len() > KEPT_PEERS {
            peers.retain(|_, peer| peer.connections.load(Relaxed) > 0);
        }
    }
}

/// Room for one waiting request.
#[derive(Debug)]
pub struct Waiter<'a>(&'a Peer);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Arc<Limits> {
        Limits::new(LimitOptions {
            connections: 3,
            connections_per_pod: 2,
            waiters_per_pod: 1,
            forwards_per_second: 2,
            forwards_in_all: 3,
        })
    }

    #[test]
    fn connections_for_each_pod_and_in_all() {
        let limits = limits();
        let [one, two]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let first = limits.connect(one, true).unwrap();
        let _second = limits.connect(one, true).unwrap();
        assert!(limits.connect(one, true).is_none());
        let _third = limits.connect(two, true).unwrap();
        assert!(limits.connect(two, true).is_none());
        drop(first);
        assert!(limits.connect(two, true).is_some());
        assert_eq!(limits.connections(), 2);
    }

    #[test]
    fn what_is_kept_of_pods_that_left_is_bounded() {
        let limits = limits();
        for n in 0..2 * u32::try_from(KEPT_PEERS).unwrap() {
            drop(limits.connect(std::net::Ipv4Addr::from_bits(n).into(), true));
        }
        assert!(limits.peers.lock().unwrap().len() <= KEPT_PEERS + 1);
    }

    #[test]
    fn a_new_connection_is_no_new_bucket() {
        let limits = limits();
        let now = Timestamp::from_second(10).unwrap();
        let forwarded = (0..5)
            .filter(|_| {
                limits
                    .connect([10, 0, 0, 1].into(), true)
                    .unwrap()
                    .forward(now)
            })
            .count();
        assert_eq!(forwarded, 2);
    }

    #[test]
    fn waiters_and_forwards() {
        let limits = limits();
        let connection = limits.connect([10, 0, 0, 1].into(), true).unwrap();
        let other = limits.connect([10, 0, 0, 1].into(), true).unwrap();
        let waiter = connection.wait().unwrap();
        assert!(other.wait().is_none());
        drop(waiter);
        assert!(other.wait().is_some());
        let at = |second| Timestamp::from_second(second).unwrap();
        let forwarded = |second| (0..5).filter(|_| connection.forward(at(second))).count();
        assert_eq!(forwarded(10), 2);
        assert_eq!(forwarded(10), 0);
        assert_eq!(forwarded(11), 2);
    }

    #[test]
    fn strangers_and_noise_leave_room_for_pods() {
        let limits = Limits::new(LimitOptions {
            connections: 32,
            ..LimitOptions::default()
        });
        let stranger = |n: u8| limits.connect([10, 0, 1, n].into(), false);
        let held: Vec<_> = (0..32).filter_map(stranger).collect();
        assert_eq!(held.len(), 16);
        assert!(limits.connect([10, 0, 0, 1].into(), true).is_some());
        drop(held);
        assert!(stranger(1).is_some());

        let limits = self::limits();
        let now = Timestamp::from_second(10).unwrap();
        let pods: Vec<_> = (1..4)
            .filter_map(|n| limits.connect([10, 0, 0, n].into(), true))
            .collect();
        let forwarded = pods.iter().cycle().take(30).filter(|pod| pod.forward(now));
        assert_eq!(forwarded.count(), 3);
    }
}
