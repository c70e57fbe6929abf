//! The connections of a port, and the choice of which to close when there are too many.
//!
//! A new connection is always accepted. Until its peer has authenticated, it counts against a
//! shared limit. When that limit is reached, the oldest such connection is closed, so a silent peer
//! cannot occupy a slot for long. Expected peers have a separate limit, which others cannot use up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::peer::PeerKey;
use crate::rate::{KeyedRate, Rate};

/// Divisor of the maximum number of connections: this fraction may be unauthenticated connections
/// of expected peers, and the same number may be of others.
const UNAUTHENTICATED_DIVISOR: usize = 8;
/// Rate of new connections of one peer, as multiples of its limit of unauthenticated ones: the
/// burst, and the rate per second.
const ACCEPT_RATE: (f64, f64) = (4.0, 0.5);
/// Time for which a limit is reported after it was reached.
const LIMIT_REPORT_TIME: Duration = Duration::from_secs(60);

/// A limit of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Unauthenticated connections of one peer.
    Peer,
    /// Rate of new connections of one peer.
    Rate,
    /// Unauthenticated connections of all peers.
    Unauthenticated,
    /// Authenticated connections.
    Authenticated,
}

impl Limit {
    /// All limits.
    pub const ALL: [Self; 4] = [
        Self::Peer,
        Self::Rate,
        Self::Unauthenticated,
        Self::Authenticated,
    ];

    /// Returns the value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Rate => "rate",
            Self::Unauthenticated => "unauthenticated",
            Self::Authenticated => "authenticated",
        }
    }
}

/// The number of connections of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Authenticated connections.
    pub authenticated: usize,
    /// Unauthenticated connections.
    pub unauthenticated: usize,
    /// The limit that was reached last, if that was within a minute.
    pub reached: Option<Limit>,
}

/// The owner of a port. It knows the expected peers and receives reports about connections.
pub trait Peers: Send + Sync + 'static {
    /// Returns `true` if a peer that can authenticate is expected from this address.
    fn is_expected(&self, address: IpAddr) -> bool;

    /// Called when a connection is closed because this limit is reached.
    fn closed(&self, limit: Limit);

    /// Called with the current number of connections.
    fn usage(&self, usage: Usage);
}

/// All connections of a port.
pub(super) struct Connections {
    /// Maximum number of unauthenticated connections of expected peers, and of others.
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

/// An accepted connection. It counts until it is dropped.
pub(super) struct Accepted {
    id: u64,
    expected: bool,
    connections: Arc<Connections>,
    evicted: CancellationToken,
    authenticated: CancellationToken,
    closing: CancellationToken,
}

/// Marks the peer of a connection as authenticated. Cloning is cheap; clones share state.
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
        let share = (limits.connections / UNAUTHENTICATED_DIVISOR).max(1);
        let per_peer = limits.per_peer.max(1);
        let each = u32::try_from(per_peer).map_or(f64::MAX, f64::from);
        Arc::new(Self {
            share,
            per_peer,
            authenticated: limits.connections.saturating_sub(2 * share).max(1),
            peers,
            rates: KeyedRate::new(Rate {
                burst: each * ACCEPT_RATE.0,
                per_second: each * ACCEPT_RATE.1,
            }),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Accepts a new connection from `address`, and closes another if necessary. `None` if the peer
    /// opens connections too fast.
    pub(super) fn accept(self: &Arc<Self>, address: IpAddr) -> Option<Accepted> {
        let expected = self.peers.is_expected(address);
        let peer = if expected {
            PeerKey::exactly(address)
        } else {
            PeerKey::of(address)
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
            // Counted before the peer can notice that it is closed.
            self.reach(limit);
            gone.evicted.cancel();
        }
        self.report_usage();
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
        self.report_usage();
    }

    /// Reports the number of connections.
    pub(super) fn report_usage(&self) {
        let mut state = self.state();
        state.reached = state
            .reached
            .filter(|(_, at)| at.elapsed() < LIMIT_REPORT_TIME);
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

    /// Removes the connection that must be closed for another one, if any. Returns it with the
    /// limit that was reached.
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

    /// Removes a connection from the unauthenticated ones.
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
    /// Waits until the connection must be closed, because another one needs its slot or because it
    /// did not authenticate within `timeout`, and returns the reason.
    pub(super) async fn cut(&self, timeout: Duration) -> &'static str {
        tokio::select! {
            () = self.evicted.cancelled() => "another unauthenticated connection needs its slot",
            shown = tokio::time::timeout(timeout, self.authenticated.cancelled()) => match shown {
                Ok(()) => std::future::pending().await,
                Err(_) => "its peer did not authenticate in time",
            },
        }
    }

    /// Returns the token that is cancelled when the connection has to close gracefully.
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
        self.connections.report_usage();
    }
}

impl Authentication {
    pub(super) fn of(accepted: &Arc<Accepted>) -> Self {
        Self(accepted.clone())
    }

    /// Marks the peer as authenticated. Returns `false` and closes the connection if it is too
    /// late, or if the limit of authenticated connections is reached.
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
        this.connections.report_usage();
        true
    }

    /// Like [`Self::close`], unless the peer has authenticated.
    pub fn close_unauthenticated(&self) {
        if !self.0.authenticated.is_cancelled() {
            self.close();
        }
    }

    /// Closes the connection gracefully: requests in progress are answered.
    pub fn close(&self) {
        self.0.closing.cancel();
    }
}

#[cfg(test)]
mod tests;
