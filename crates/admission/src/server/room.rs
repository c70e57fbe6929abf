//! Room for connections and large bodies, for each peer and in all. Whoever reaches the port may
//! connect to it: one of them must not keep the API server's reviews waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rolegate_runtime::peer::PeerKey;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Connections in all. An API server has one for each of its requests that is under way, a few
/// hundred at most.
pub(super) const CONNECTIONS: usize = 1024;
/// Connections of one peer.
const PEER_CONNECTIONS: usize = 256;
/// Longest body that takes no room: connections bound those, and no large body keeps one of them
/// waiting. Nearly all reviews are shorter.
pub(super) const SMALL: usize = 64 * 1024;
/// Room for longer bodies, bytes.
const BYTES: usize = 48 * 1024 * 1024;
/// Room for longer bodies of one peer, bytes.
const PEER_BYTES: usize = 16 * 1024 * 1024;

/// All room.
#[derive(Debug)]
pub(super) struct Room {
    bytes: Semaphore,
    /// Touched when a connection opens and closes.
    peers: Mutex<HashMap<PeerKey, Peer>>,
}

/// One peer's.
#[derive(Debug)]
struct Peer {
    connections: usize,
    bytes: Arc<Semaphore>,
}

/// A connection that has its place, given back when dropped.
#[derive(Debug)]
pub(super) struct Guest {
    address: PeerKey,
    bytes: Arc<Semaphore>,
    room: Arc<Room>,
}

/// Room for one body, given back when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(
    #[expect(dead_code, reason = "held for its Drop")] Option<[SemaphorePermit<'a>; 2]>,
);

impl Room {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Semaphore::new(BYTES),
            peers: Mutex::default(),
        })
    }

    /// A place for a connection from `address`; `None`: that peer has its part.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let address = PeerKey::of(address);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(address).or_insert_with(|| Peer {
            connections: 0,
            bytes: Arc::new(Semaphore::new(PEER_BYTES)),
        });
        if peer.connections == PEER_CONNECTIONS {
            return None;
        }
        peer.connections += 1;
        Some(Guest {
            address,
            bytes: peer.bytes.clone(),
            room: self.clone(),
        })
    }
}

impl Guest {
    /// Waits for room for a body of `length` bytes.
    ///
    /// # Errors
    /// None in practice: the semaphores are never closed.
    pub(super) async fn hold(&self, length: usize) -> Result<Held<'_>, AcquireError> {
        if length <= SMALL {
            return Ok(Held(None));
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        // The peer's own first: who waits for it takes nothing of what others have.
        let own = self.bytes.acquire_many(length).await?;
        let all = self.room.bytes.acquire_many(length).await?;
        Ok(Held(Some([own, all])))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let peers = &self.room.peers;
        let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&self.address) {
            peer.connections -= 1;
            if peer.connections == 0 {
                peers.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_part_of_connections_and_leaves_nothing_behind() {
        let room = Room::new();
        let one: IpAddr = [10, 0, 0, 1].into();
        let all: Vec<_> = (0..PEER_CONNECTIONS)
            .map(|_| room.enter(one).unwrap())
            .collect();
        assert!(room.enter(one).is_none());
        assert!(room.enter("::ffff:10.0.0.1".parse().unwrap()).is_none());
        // A network of IPv6 is one peer.
        let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
        let network: Vec<_> = (0..300).filter_map(|n| room.enter(v6(n))).collect();
        assert_eq!(network.len(), PEER_CONNECTIONS);
        drop(network);
        let other = room.enter([10, 0, 0, 2].into());
        assert!(other.is_some());
        drop(all);
        assert!(room.enter(one).is_some());
        drop(other);
        assert!(room.peers.lock().unwrap().is_empty());
    }
}
