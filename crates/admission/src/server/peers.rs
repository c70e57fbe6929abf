//! Connections and memory for large bodies, shared fairly among peers. Anyone who can reach the
//! port can connect to it, and must not delay the API server's reviews.
//!
//! A peer is known once it has sent a review. Anyone can send one, so this is not authentication:
//! it separates API servers from peers that only hold connections. Known peers are limited in
//! number and share fairly, which bounds what one can take from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rolegate_runtime::peer::PeerKey;
use rolegate_runtime::shares::{Admitted, Eviction, Holder, Limit, ShareLimits, Shares, Slot};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Maximum number of connections of all known peers. An API server has one for each concurrent
/// request, a few hundred at most.
const KNOWN_CONNECTIONS: usize = 768;
/// Maximum number of connections of all unknown peers.
const UNKNOWN_CONNECTIONS: usize = 256;
/// Maximum number of connections of one known peer.
pub(super) const PEER_CONNECTIONS: usize = 256;
/// Maximum number of known peers. A cluster has few API servers. Where proxies connect for them,
/// each proxy that forwards a review counts.
const MAX_KNOWN_PEERS: usize = 32;
/// Time without a review after which a peer is no longer known. A cluster may have no reviews for
/// long, since API servers send only objects that name a role.
const KNOWN_PEER_TTL: Duration = Duration::from_secs(3600);
/// Maximum size of a body that needs no reserved memory, in bytes. The limit on connections bounds
/// the memory of those, and large bodies never delay them. Nearly all reviews are smaller.
pub(super) const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Memory for larger bodies of all known peers, in bytes.
const KNOWN_BYTES: usize = 32 * 1024 * 1024;
/// Memory for larger bodies of all unknown peers, in bytes.
const UNKNOWN_BYTES: usize = 16 * 1024 * 1024;
/// Memory for larger bodies of one peer, in bytes: one of the maximum size.
const PEER_BYTES: usize = rolegate_review::admission_review::MAX_REVIEW_BYTES;

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    shares: Shares<PeerKey, PeerBytes>,
    known: Mutex<Known>,
    known_bytes: Semaphore,
    unknown_bytes: Semaphore,
}

/// The memory of one peer.
#[derive(Debug)]
struct PeerBytes(Semaphore);

impl Default for PeerBytes {
    fn default() -> Self {
        Self(Semaphore::new(PEER_BYTES))
    }
}

/// The peer of a connection. It holds the connection's slot.
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
                total: KNOWN_CONNECTIONS + UNKNOWN_CONNECTIONS,
                each: PEER_CONNECTIONS,
                known: KNOWN_CONNECTIONS,
                unknown_peers: UNKNOWN_CONNECTIONS,
            }),
            known: Mutex::default(),
            known_bytes: Semaphore::new(KNOWN_BYTES),
            unknown_bytes: Semaphore::new(UNKNOWN_BYTES),
        })
    }

    /// Returns the maximum number of connections at a time.
    pub(super) fn most_connections(&self) -> usize {
        self.shares.most()
    }

    /// Takes a slot for a connection from `address`, and evicts another if a limit is reached. Also
    /// returns that limit.
    pub(super) fn connect(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> (Arc<Peer>, Eviction, Option<Limit>) {
        let key = PeerKey::of(address);
        // Locked until the connection is admitted, so that the peer becomes known before or after
        // that.
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
        self.known.lock()
    }

    fn forget(&self, silent: Vec<PeerKey>) {
        for key in silent {
            self.shares.classify(&Holder { key, known: false });
        }
    }
}

impl Peer {
    /// Records that a request has begun.
    pub(super) fn begin(&self) {
        self.slot.begin(std::time::Instant::now());
    }

    /// Records that the request was answered.
    pub(super) fn end(&self) {
        self.slot.end(std::time::Instant::now());
    }

    /// Records that the peer has sent a valid review.
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
        if length <= SMALL_BODY_BYTES {
            return Ok(Held(None));
        }
        let all = if self.peers.known().contains(self.slot.holder()) {
            &self.peers.known_bytes
        } else {
            &self.peers.unknown_bytes
        };
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        // The peer's own permit first: a request that waits for it takes nothing from others.
        let own = self.slot.data().0.acquire_many(length).await?;
        let all = all.acquire_many(length).await?;
        Ok(Held(Some([own, all])))
    }
}

/// Peers that have sent a review recently.
#[derive(Debug, Default)]
struct Known {
    /// The time of each peer's last review.
    last: HashMap<PeerKey, Instant>,
}

/// The result of recording a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// The peer is known from now on.
    New,
    /// The peer was known before.
    Again,
    /// The peer stays unknown, since the maximum number of peers is known. Known peers are replaced
    /// only after they were silent; otherwise anyone could replace them.
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
        if self.last.len() >= MAX_KNOWN_PEERS {
            return Noted::Full;
        }
        self.last.insert(key, now);
        Noted::New
    }

    /// Removes and returns the peers that have been silent for long.
    fn silent(&mut self, now: Instant) -> Vec<PeerKey> {
        let silent = |_: &PeerKey, last: &mut Instant| now.duration_since(*last) >= KNOWN_PEER_TTL;
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
    async fn known_peers_are_limited_and_expire() {
        let peers = Peers::new();
        let review = |n| peers.connect(address(n)).0.reviewed();
        for n in 0..100 {
            review(n);
        }
        let known = |n| is_known(&peers, address(n));
        assert_eq!((0..100).filter(|n| known(*n)).count(), MAX_KNOWN_PEERS);
        assert!(known(0) && !known(99));
        // A peer that keeps sending reviews stays known, and others can be replaced.
        tokio::time::advance(KNOWN_PEER_TTL / 2).await;
        review(0);
        tokio::time::advance(KNOWN_PEER_TTL / 2).await;
        review(99);
        assert!(known(0) && known(99) && !known(1));
        assert_eq!(peers.known().last.len(), 2);
        // A connection is enough to expire it.
        tokio::time::advance(KNOWN_PEER_TTL).await;
        let _other = peers.connect(address(200));
        assert!(peers.known().last.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_large_bodies_take_memory_of_their_peer_and_class() {
        let peers = Peers::new();
        let (peer, ..) = peers.connect(address(1));
        let free = || {
            let own = peer.slot.data().0.available_permits();
            let strangers = peers.unknown_bytes.available_permits();
            (own, strangers, peers.known_bytes.available_permits())
        };
        let all = (PEER_BYTES, UNKNOWN_BYTES, KNOWN_BYTES);
        assert_eq!(free(), all);
        let small = peer.hold(SMALL_BODY_BYTES).await.unwrap();
        assert_eq!(free(), all);
        let large = SMALL_BODY_BYTES + 1;
        let held = peer.hold(large).await.unwrap();
        assert_eq!(free(), (all.0 - large, all.1 - large, all.2));
        drop((small, held));
        peer.reviewed();
        let _held = peer.hold(large).await.unwrap();
        assert_eq!(free(), (all.0 - large, all.1, all.2 - large));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_forgotten_peers_count_among_those_of_strangers() {
        let peers = Peers::new();
        let open = |peer, count| -> Vec<_> {
            let (first, ..) = peers.connect(address(peer));
            first.reviewed();
            let others = (1..count).map(|_| peers.connect(address(peer)).0);
            others.chain([first.clone()]).collect()
        };
        let _held = (open(1, 200), open(2, 100));
        assert_eq!(peers.shares.open(), 300);
        tokio::time::advance(KNOWN_PEER_TTL).await;
        let _other = peers.connect(address(3));
        assert_eq!(peers.shares.open(), UNKNOWN_CONNECTIONS);
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
        // An IPv6 network is one peer, and an unknown peer may have less.
        let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
        let network: Vec<_> = (0..300).map(|n| open(v6(n))).collect();
        let evicted = network.iter().filter(|it| it.2 == Some(Limit::Each));
        assert_eq!(evicted.count(), 300 - UNKNOWN_CONNECTIONS / 8);
        drop((first, own, network));
        assert_eq!(peers.shares.open(), 0);
    }
}
