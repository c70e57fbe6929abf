//! The connections of a port, and which of them has to go when there are too many.
//!
//! A new connection is always accepted. Until its peer has authenticated, it belongs to a common
//! share of all connections, the oldest of which is closed when there are too many: a silent peer
//! doesn't hold a place for long. Expected peers have a separate share, which others can't use up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::peer::PeerKey;
use crate::rate::{KeyedRate, Rate};

/// The part of all connections that may be unauthenticated and of peers that are expected, and as
/// many again of others.
const UNAUTHENTICATED: usize = 8;
/// New connections of one peer, as multiples of its limit of unauthenticated ones: the burst, and
/// the rate a second.
const ACCEPTED: (f64, f64) = (4.0, 0.5);
/// The time for which a limit is reported after it was reached.
const RECENTLY: Duration = Duration::from_secs(60);

/// A limit of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Unauthenticated connections of one peer.
    Peer,
    /// New connections of one peer in a time.
    Rate,
    /// Unauthenticated connections of all peers.
    Unauthenticated,
    /// Authenticated connections.
    Authenticated,
}

impl Limit {
    /// A word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Rate => "rate",
            Self::Unauthenticated => "unauthenticated",
            Self::Authenticated => "authenticated",
        }
    }
}

/// The connections of a port at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Those whose other end has authenticated.
    pub authenticated: usize,
    /// The others.
    pub unauthenticated: usize,
    /// The limit that was reached last, if that was within a minute.
    pub reached: Option<Limit>,
}

/// A port's owner: it knows which peers are expected, and hears how the port fares.
pub trait Peers: Send + Sync + 'static {
    /// Returns whether a peer that may authenticate is expected from this address.
    fn is_expected(&self, address: IpAddr) -> bool;

    /// Hears that a connection is closed, since this limit is reached.
    fn closed(&self, limit: Limit);

    /// Hears how many connections there are now.
    fn usage(&self, usage: Usage);
}

/// All connections of a port.
pub(super) struct Connections {
    /// Unauthenticated ones of expected peers, and as many again of others.
    share: usize,
    per_peer: usize,
    authenticated: usize,
    peers: Arc<dyn Peers>,
    rates: KeyedRate<PeerKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Unauthenticated connections by age: of others, and of expected peers.
    pending: [BTreeMap<u64, Pending>; 2],
    /// The unauthenticated connections of each peer, the oldest first.
    by_peer: HashMap<PeerKey, VecDeque<u64>>,
    authenticated: usize,
    reached: Option<(Limit, Instant)>,
}

struct Pending {
    peer: PeerKey,
    evicted: CancellationToken,
}

/// A connection that was accepted; it is counted until it is dropped.
pub(super) struct Accepted {
    id: u64,
    expected: bool,
    connections: Arc<Connections>,
    evicted: CancellationToken,
    authenticated: CancellationToken,
    closing: CancellationToken,
}

/// Authenticates the peer of a connection. Cheap to clone; all clones share the same state.
#[derive(Clone)]
pub struct Authentication(Arc<Accepted>);

impl std::fmt::Debug for Authentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authentication")
            .field(&self.0.authenticated.is_cancelled())
            .finish()
    }
}

impl Connections {
    pub(super) fn new(limits: Limits, peers: Arc<dyn Peers>) -> Arc<Self> {
        let share = (limits.connections / UNAUTHENTICATED).max(1);
        let per_peer = limits.per_peer.max(1);
        let each = u32::try_from(per_peer).map_or(f64::MAX, f64::from);
        Arc::new(Self {
            share,
            per_peer,
            authenticated: limits.connections.saturating_sub(2 * share).max(1),
            peers,
            rates: KeyedRate::new(Rate {
                burst: each * ACCEPTED.0,
                per_second: each * ACCEPTED.1,
            }),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection from `address`, for which another may have to go; `None` where the peer
    /// opens them faster than it may.
    pub(super) fn accept(self: &Arc<Self>, address: IpAddr) -> Option<Accepted> {
        let expected = self.peers.is_expected(address);
        let peer = match expected {
            true => PeerKey::exactly(address),
            false => PeerKey::of(address),
        };
        if !self.rates.take(&peer) {
            self.reach(Limit::Rate);
            return None;
        }
        let mut state = self.state();
        let room = state.make_room(peer, expected, self.share, self.per_peer);
        let evicted = CancellationToken::new();
        let id = state.next;
        state.next += 1;
        let pending = Pending {
            peer,
            evicted: evicted.clone(),
        };
        state.share(expected).insert(id, pending);
        state.by_peer.entry(peer).or_default().push_back(id);
        drop(state);
        if let Some((limit, gone)) = room {
            // Counted before its peer can see that it is closed.
            self.reach(limit);
            gone.evicted.cancel();
        }
        self.tell();
        Some(Accepted {
            id,
            expected,
            connections: self.clone(),
            evicted,
            authenticated: CancellationToken::new(),
            closing: CancellationToken::new(),
        })
    }

    fn reach(&self, limit: Limit) {
        self.state().reached = Some((limit, Instant::now()));
        self.peers.closed(limit);
        self.tell();
    }

    /// Says how many connections there are now.
    pub(super) fn tell(&self) {
        let mut state = self.state();
        state.reached = state.reached.filter(|(_, at)| at.elapsed() < RECENTLY);
        let usage = Usage {
            authenticated: state.authenticated,
            unauthenticated: state.pending.iter().map(BTreeMap::len).sum(),
            reached: state.reached.map(|(limit, _)| limit),
        };
        drop(state);
        self.peers.usage(usage);
    }
}

impl State {
    fn share(&mut self, expected: bool) -> &mut BTreeMap<u64, Pending> {
        let [others, known] = &mut self.pending;
        if expected { known } else { others }
    }

    /// Takes out the connection that has to go for one more, if any; returns it with the limit that
    /// was reached.
    fn make_room(
        &mut self,
        peer: PeerKey,
        expected: bool,
        share: usize,
        per_peer: usize,
    ) -> Option<(Limit, Pending)> {
        let own = self.by_peer.get(&peer).filter(|own| own.len() >= per_peer);
        let (oldest, limit) = match own.map(|own| own.front().copied()) {
            Some(oldest) => (oldest, Limit::Peer),
            None if self.share(expected).len() >= share => {
                let oldest = self.share(expected).keys().next().copied();
                (oldest, Limit::Unauthenticated)
            }
            None => return None,
        };
        let gone = self.remove(oldest?)?;
        Some((limit, gone))
    }

    /// Takes a connection from those that are unauthenticated.
    fn remove(&mut self, id: u64) -> Option<Pending> {
        let gone = self.pending.iter_mut().find_map(|all| all.remove(&id))?;
        if let Some(own) = self.by_peer.get_mut(&gone.peer) {
            own.retain(|other| *other != id);
            if own.is_empty() {
                self.by_peer.remove(&gone.peer);
            }
        }
        Some(gone)
    }
}

impl Accepted {
    /// Returns when the connection has to be cut: another needs its place, or nothing was shown on it
    /// for `patience`.
    pub(super) async fn cut(&self, patience: Duration) -> &'static str {
        tokio::select! {
            () = self.evicted.cancelled() => "another unauthenticated connection needs its place",
            shown = tokio::time::timeout(patience, self.authenticated.cancelled()) => match shown {
                Ok(()) => std::future::pending().await,
                Err(_) => "its peer did not authenticate in time",
            },
        }
    }

    /// Returns when the connection is to be closed, what is under way on it being finished.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        if self.authenticated.is_cancelled() {
            state.authenticated -= 1;
        } else {
            state.remove(self.id);
        }
        drop(state);
        self.connections.tell();
    }
}

impl Authentication {
    pub(super) fn of(accepted: &Arc<Accepted>) -> Self {
        Self(accepted.clone())
    }

    /// The other end has authenticated, now; `false` where it comes too late, or where there are as
    /// many such connections as there may be: the connection is closed then.
    pub fn succeed(&self) -> bool {
        let this = &self.0;
        let mut state = this.connections.state();
        if this.authenticated.is_cancelled() {
            return true;
        }
        let full = state.authenticated >= this.connections.authenticated;
        if full || state.share(this.expected).get(&this.id).is_none() {
            drop(state);
            if full {
                this.connections.reach(Limit::Authenticated);
            }
            self.close();
            return false;
        }
        state.remove(this.id);
        state.authenticated += 1;
        this.authenticated.cancel();
        drop(state);
        this.connections.tell();
        true
    }

    /// The same as [`Self::close`], unless the other end has authenticated.
    pub fn close_unauthenticated(&self) {
        if !self.0.authenticated.is_cancelled() {
            self.close();
        }
    }

    /// Has the connection closed, once what is under way on it is answered.
    pub fn close(&self) {
        self.0.closing.cancel();
    }
}

#[cfg(test)]
mod tests;
