//! Connections and memory for large bodies, shared fairly among peers. Anyone who can reach the
//! port can connect to it, and must not keep the API server's reviews waiting.
//!
//! A peer is known once it has sent a review. Anyone can send one, so that proves nothing: it
//! separates API servers from those that only hold connections. What known peers can take from each
//! other is bounded by their number and by fair shares.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rolegate_runtime::peer::PeerKey;
use rolegate_runtime::shares::{Admitted, Eviction, Holder, Limit, ShareLimits, Shares, Slot};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Connections of all known peers. An API server has one for each of its requests that is under
/// way, a few hundred at most.
const KNOWN_CONNECTIONS: usize = 768;
/// Connections of all other peers.
const STRANGERS_CONNECTIONS: usize = 256;
/// Connections of one known peer.
const PEER_CONNECTIONS: usize = 256;
/// Peers that are known at a time. A cluster has few API servers, and where proxies connect for
/// them, each proxy that a review came by counts.
const KNOWN: usize = 32;
/// The time without a review after which a peer is known no longer. A cluster may have no review
/// for long, since API servers send only what names a role.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Length of the longest body that needs no reserved memory: the limit on connections bounds those,
/// and no large body keeps one of them waiting. Nearly all reviews are shorter.
pub(super) const SMALL: usize = 64 * 1024;
/// Memory for longer bodies of all known peers, bytes.
const KNOWN_BYTES: usize = 32 * 1024 * 1024;
/// Memory for longer bodies of all other peers, bytes.
const STRANGERS_BYTES: usize = 16 * 1024 * 1024;
/// Memory for longer bodies of one peer, bytes: that of one as long as may be.
const PEER_BYTES: usize = crate::review::MAX_REVIEW;

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    shares: Shares<PeerKey, PeerBytes>,
    known: Mutex<Known>,
    known_bytes: Semaphore,
    strangers_bytes: Semaphore,
}

/// The memory of one peer.
#[derive(Debug)]
struct PeerBytes(Semaphore);

impl Default for PeerBytes {
    fn default() -> Self {
        Self(Semaphore::new(PEER_BYTES))
    }
}

/// The peer of a connection, which has its place as long as this lives.
#[derive(Debug)]
pub(super) struct Peer {
    slot: Slot<PeerKey, PeerBytes>,
    peers: Arc<Peers>,
}

/// Memory for one body, released when dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(
    #[expect(dead_code, reason = "held for its Drop")] Option<[SemaphorePermit<'a>; 2]>,
);

impl Peers {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            shares: Shares::new(ShareLimits {
                total: KNOWN_CONNECTIONS + STRANGERS_CONNECTIONS,
                each: PEER_CONNECTIONS,
                known: KNOWN_CONNECTIONS,
                strangers: STRANGERS_CONNECTIONS,
            }),
            known: Mutex::default(),
            known_bytes: Semaphore::new(KNOWN_BYTES),
            strangers_bytes: Semaphore::new(STRANGERS_BYTES),
        })
    }

    /// The most connections that exist at a time.
    pub(super) fn most_connections(&self) -> usize {
        self.shares.most()
    }

    /// Takes a place for a connection from `address`, for which another one may be evicted: the
    /// limit that was reached is returned.
    pub(super) fn connect(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> (Arc<Peer>, Eviction, Option<Limit>) {
        let key = PeerKey::of(address);
        // Locked until it is admitted, so that it becomes known before or after that.
        let mut peers = self.known();
        self.forget(peers.silent(Instant::now()));
        let known = peers.contains(&key);
        let Admitted {
            slot,
            eviction,
            evicted,
        } = self.shares.admit(Holder { key, known });
        drop(peers);
        let peers = self.clone();
        (Arc::new(Peer { slot, peers }), eviction, evicted)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, silent: Vec<PeerKey>) {
        for key in silent {
            self.shares.classify(&Holder { key, known: false });
        }
    }
}

impl Peer {
    /// Notes that a request has begun.
    pub(super) fn begin(&self) {
        self.slot.begin(std::time::Instant::now());
    }

    /// Notes that the request was answered.
    pub(super) fn end(&self) {
        self.slot.end(std::time::Instant::now());
    }

    /// Notes that the peer has sent a review that can be read.
    pub(super) fn reviewed(&self) {
        let key = *self.slot.holder();
        let mut known = self.peers.known();
        let now = Instant::now();
        self.peers.forget(known.silent(now));
        if known.note(key, now) == Noted::New {
            self.peers.shares.classify(&Holder { key, known: true });
        }
    }

    /// Waits for memory for a body of `length` bytes.
    ///
    /// # Errors
    /// None in practice: the semaphores are never closed.
    pub(super) async fn hold(&self, length: usize) -> Result<Held<'_>, AcquireError> {
        if length <= SMALL {
            return Ok(Held(None));
        }
        let all = match self.peers.known().contains(self.slot.holder()) {
            true => &self.peers.known_bytes,
            false => &self.peers.strangers_bytes,
        };
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        // The peer's own first: one that waits for it takes nothing from others.
        let own = self.slot.data().0.acquire_many(length).await?;
        let all = all.acquire_many(length).await?;
        Ok(Held(Some([own, all])))
    }
}

/// Peers that have sent a review lately.
#[derive(Debug, Default)]
struct Known {
    /// The time of the last review.
    last: HashMap<PeerKey, Instant>,
}

/// What a review makes of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// It is known from now on.
    New,
    /// It was known before.
    Again,
    /// It stays unknown, since there are as many known peers as there may be: those that are known
    /// are never replaced before they are silent, or anyone could replace them.
    Full,
}

impl Known {
    fn contains(&self, key: &PeerKey) -> bool {
        self.last.contains_key(key)
    }

    fn note(&mut self, key: PeerKey, now: Instant) -> Noted {
        if let Some(last) = self.last.get_mut(&key) {
            *last = now;
            return Noted::Again;
        }
        if self.last.len() >= KNOWN {
            return Noted::Full;
        }
        self.last.insert(key, now);
        Noted::New
    }

    /// Takes out the peers that have been silent for long.
    fn silent(&mut self, now: Instant) -> Vec<PeerKey> {
        let silent = |_: &PeerKey, last: &mut Instant| now.duration_since(*last) >= FORGOTTEN;
        self.last.extract_if(silent).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    fn is_known(peers: &Peers, address: IpAddr) -> bool {
        peers.known().contains(&PeerKey::of(address))
    }

    #[tokio::test(start_paused = true)]
    async fn known_peers_are_few_are_replaced_by_nobody_and_are_forgotten() {
        let peers = Peers::new();
        let review = |n| peers.connect(address(n)).0.reviewed();
        for n in 0..100 {
            review(n);
        }
        let known = |n| is_known(&peers, address(n));
        assert_eq!((0..100).filter(|n| known(*n)).count(), KNOWN);
        assert!(known(0) && !known(99));
        // One that goes on sending reviews stays known, and there is room in the place of others.
        tokio::time::advance(FORGOTTEN / 2).await;
        review(0);
        tokio::time::advance(FORGOTTEN / 2).await;
        review(99);
        assert!(known(0) && known(99) && !known(1));
        assert_eq!(peers.known().last.len(), 2);
        // A connection is enough to see that.
        tokio::time::advance(FORGOTTEN).await;
        let _other = peers.connect(address(200));
        assert!(peers.known().last.is_empty());
    }

    #[test]
    fn a_peer_has_its_part_of_connections_and_leaves_nothing_behind() {
        let peers = Peers::new();
        let open = |address: IpAddr| peers.connect(address);
        let one = address(1);
        let (first, ..) = open(one);
        first.reviewed();
        let mut own: Vec<_> = (1..PEER_CONNECTIONS).map(|_| open(one)).collect();
        assert!(own.iter().all(|(.., evicted)| evicted.is_none()));
        own.push(open("::ffff:10.0.0.1".parse().unwrap()));
        assert_eq!(own.last().unwrap().2, Some(Limit::Each));
        // A network of IPv6 is one peer, and a stranger has less.
        let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
        let network: Vec<_> = (0..300).map(|n| open(v6(n))).collect();
        let evicted = network.iter().filter(|it| it.2 == Some(Limit::Each));
        assert_eq!(evicted.count(), 300 - STRANGERS_CONNECTIONS / 8);
        drop((first, own, network));
        assert_eq!(peers.shares.open(), 0);
    }
}
