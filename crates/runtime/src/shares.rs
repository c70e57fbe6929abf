//! Fair sharing of a port's connections. Everyone can always open one more: at a limit the longest
//! idle connection of the known holder that has the most makes room for it, or the longest idle one
//! of all unknown peers.
//!
//! The table changes when a connection opens and closes. A request only stores the time on its own
//! connection, and reads whether the table is crowded.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Divisor of the maximum number of connections: this fraction may be evicted ones that finish a
/// request.
const FINISHING_DIVISOR: usize = 8;
/// Divisor of the limit of all unknown peers: this fraction is the limit of one.
const UNKNOWN_PEER_DIVISOR: usize = 8;

/// Limits of a table of connections.
#[derive(Debug, Clone, Copy)]
pub struct ShareLimits {
    /// Maximum number of connections.
    pub total: usize,
    /// Maximum number of connections of one holder. An unknown peer has at most an eighth of those
    /// of all unknown peers.
    pub each: usize,
    /// Maximum number of connections of all known holders together. If this and `unknown_peers` add
    /// up to `total`, neither class evicts connections of the other.
    pub known: usize,
    /// Maximum number of connections of all unknown peers together.
    pub unknown_peers: usize,
}

/// The holder of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder<K> {
    /// The holder's identity.
    pub key: K,
    /// `true` if the holder is known. All others are unknown peers, which together count as one
    /// holder when the table is full. Applies to the holder's existing connections, too.
    pub known: bool,
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`ShareLimits::total`].
    Total,
    /// [`ShareLimits::each`].
    Each,
    /// [`ShareLimits::known`].
    Known,
    /// [`ShareLimits::unknown_peers`].
    UnknownPeers,
}

/// The connections of a port, by holder. The connections of a holder share a `D`. Cloning is cheap;
/// clones share state.
#[derive(Debug)]
pub struct Shares<K: Eq + Hash, D>(Arc<Inner<K, D>>);

impl<K: Eq + Hash, D> Clone for Shares<K, D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Inner<K: Eq + Hash, D> {
    limits: ShareLimits,
    origin: Instant,
    open: AtomicUsize,
    /// `true` if the table is nearly full and each holder should keep at most `fair` connections.
    crowded: AtomicBool,
    fair: AtomicUsize,
    table: Mutex<Table<K, D>>,
}

#[derive(Debug)]
struct Table<K, D> {
    next: u64,
    open: usize,
    unknown_peers: usize,
    holders: HashMap<K, Held<D>>,
    /// Evicted connections that may finish a request, the oldest first.
    finishing: BTreeMap<u64, oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Held<D> {
    known: bool,
    shared: Arc<Shared<D>>,
    connections: HashMap<u64, Open>,
}

/// State shared by the connections of one holder.
#[derive(Debug)]
struct Shared<D> {
    count: AtomicUsize,
    data: D,
}

#[derive(Debug)]
struct Open {
    activity: Arc<Activity>,
    finish: oneshot::Sender<()>,
    cut: oneshot::Sender<()>,
}

/// Milliseconds from the table's origin to the last change, shifted by one. The lowest bit is set
/// while the connection has a request, or has not had one yet.
#[derive(Debug)]
struct Activity(AtomicU64);

impl Activity {
    /// Orders connections: idle ones before busy ones, then the longest unchanged first.
    fn rank(&self) -> (bool, u64) {
        let value = self.0.load(Relaxed);
        (value & 1 == 1, value >> 1)
    }
}

/// An admitted connection.
#[derive(Debug)]
pub struct Admitted<K: Eq + Hash + Clone, D> {
    /// The connection's slot, released when dropped.
    pub slot: Slot<K, D>,
    /// Tells the server to close the connection.
    pub eviction: Eviction,
    /// The limit for which another connection was evicted.
    pub evicted: Option<Limit>,
}

impl<K: Eq + Hash + Clone, D: Default> Shares<K, D> {
    /// Creates an empty table.
    pub fn new(limits: ShareLimits) -> Self {
        Self(Arc::new(Inner {
            limits,
            origin: Instant::now(),
            open: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            fair: AtomicUsize::new(limits.total),
            table: Mutex::new(Table {
                next: 0,
                open: 0,
                unknown_peers: 0,
                holders: HashMap::new(),
                finishing: BTreeMap::new(),
            }),
        }))
    }

    /// Returns the maximum number of connections at a time, including evicted ones that finish.
    pub fn most(&self) -> usize {
        // One more is between its eviction and its end.
        self.0.limits.total + self.0.finishing() + 1
    }

    /// Admits a connection, and evicts another if a limit is reached.
    pub fn admit(&self, holder: Holder<K>) -> Admitted<K, D> {
        let inner = &self.0;
        let mut table = inner.lock();
        table.classify(inner, &holder);
        let evicted = table.limit(&inner.limits, &holder);
        if let Some(loser) = evicted.and_then(|limit| table.loser(limit, &holder)) {
            table.evict(loser, inner.finishing());
        }
        let id = table.next;
        table.next += 1;
        let activity = Arc::new(Activity(AtomicU64::new(inner.stamp(Instant::now()) | 1)));
        let (finish, finished) = oneshot::channel();
        let (cut, cut_off) = oneshot::channel();
        let Holder { key, known } = holder;
        let held = table.holders.entry(key.clone()).or_insert_with(|| Held {
            known,
            shared: Arc::new(Shared {
                count: AtomicUsize::new(0),
                data: D::default(),
            }),
            connections: HashMap::new(),
        });
        let open = Open {
            activity: activity.clone(),
            finish,
            cut,
        };
        held.connections.insert(id, open);
        let shared = held.shared.clone();
        shared.count.store(held.connections.len(), Relaxed);
        table.open += 1;
        table.unknown_peers += usize::from(!known);
        inner.publish(&table);
        Admitted {
            slot: Slot {
                id,
                key,
                activity,
                shared,
                inner: inner.clone(),
            },
            eviction: Eviction(Some((finished, cut_off))),
            evicted,
        }
    }

    /// Moves a holder's connections to its current class, where others may be evicted for them.
    pub fn classify(&self, holder: &Holder<K>) {
        let mut table = self.0.lock();
        table.classify(&self.0, holder);
        self.0.publish(&table);
    }
}

impl<K: Eq + Hash, D> Shares<K, D> {
    /// Returns the number of open connections, without evicted ones.
    pub fn open(&self) -> usize {
        self.0.open.load(Relaxed)
    }
}

impl<K: Eq + Hash, D> Inner<K, D> {
    fn lock(&self) -> MutexGuard<'_, Table<K, D>> {
        self.table.lock()
    }

    fn finishing(&self) -> usize {
        (self.limits.total / FINISHING_DIVISOR).max(1)
    }

    fn stamp(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        (since.as_secs() * 1000 + u64::from(since.subsec_millis())) << 1
    }

    /// Publishes how crowded the table is, for requests to read.
    fn publish(&self, table: &Table<K, D>) {
        self.open.store(table.open, Relaxed);
        let room = self.limits.total - self.limits.total / 8;
        self.crowded.store(table.open >= room, Relaxed);
        let fair = self.limits.total / table.holders.len().max(1);
        self.fair.store(fair.max(1), Relaxed);
    }
}

impl<K: Eq + Hash + Clone, D> Table<K, D> {
    /// Returns the limit that a further connection of `holder` would exceed.
    fn limit(&self, limits: &ShareLimits, holder: &Holder<K>) -> Option<Limit> {
        let count = self.count(&holder.key);
        let unknown_peer = (limits.unknown_peers / UNKNOWN_PEER_DIVISOR).max(1);
        if count >= limits.each.max(1) || !holder.known && count >= unknown_peer {
            Some(Limit::Each)
        } else if self.of_class(holder.known) >= limits.of_class(holder.known) {
            Some(if holder.known {
                Limit::Known
            } else {
                Limit::UnknownPeers
            })
        } else if self.open >= limits.total.max(1) {
            Some(Limit::Total)
        } else {
            None
        }
    }

    fn count(&self, key: &K) -> usize {
        let held = self.holders.get(key);
        held.map_or(0, |held| held.connections.len())
    }

    fn of_class(&self, known: bool) -> usize {
        if known {
            self.open - self.unknown_peers
        } else {
            self.unknown_peers
        }
    }

    /// Moves a holder to its current class, and evicts connections above that class's limit.
    fn classify(&mut self, inner: &Inner<K, D>, holder: &Holder<K>) {
        let known = holder.known;
        let held = self.holders.get_mut(&holder.key);
        let Some(held) = held.filter(|held| held.known != known) else {
            return;
        };
        held.known = known;
        if known {
            self.unknown_peers -= held.connections.len();
        } else {
            self.unknown_peers += held.connections.len();
        }
        while self.of_class(known) > inner.limits.of_class(known)
            && let Some(loser) = self.loser_of_class(known, None)
        {
            self.evict(loser, inner.finishing());
        }
    }

    /// Returns the holder that loses a connection to one of `newcomer`.
    fn loser(&self, limit: Limit, newcomer: &Holder<K>) -> Option<K> {
        let of_class = |known| self.loser_of_class(known, Some(&newcomer.key));
        match limit {
            Limit::Each => Some(newcomer.key.clone()),
            Limit::Known => of_class(true),
            Limit::UnknownPeers => of_class(false),
            Limit::Total => {
                // All unknown peers count as one holder.
                let known = of_class(true);
                let of_known = known
                    .as_ref()
                    .map_or(0, |key| self.count(key) + usize::from(*key == newcomer.key));
                let of_strangers = self.unknown_peers + usize::from(!newcomer.known);
                if self.unknown_peers > 0 && of_strangers >= of_known {
                    return of_class(false);
                }
                known
            }
        }
    }

    /// Returns the holder in a class that loses a connection. Among known holders it is the one
    /// with the most connections, where the newcomer's next connection counts and the newcomer
    /// loses ties. Among unknown peers it is the one whose connection is first to go, so that a new
    /// one has as long as any to become known.
    fn loser_of_class(&self, known: bool, newcomer: Option<&K>) -> Option<K> {
        let holders = self.holders.iter().filter(|(_, held)| held.known == known);
        let loser = if known {
            holders.max_by_key(|(key, held)| {
                let own = Some(*key) == newcomer;
                (held.connections.len() + usize::from(own), own)
            })
        } else {
            holders.min_by_key(|(_, held)| held.first_to_go())
        };
        loser.map(|(key, _)| key.clone())
    }

    /// Closes the connection of `loser` that is first to go.
    fn evict(&mut self, loser: K, most_finishing: usize) {
        let Some(held) = self.holders.get_mut(&loser) else {
            return;
        };
        let first = held.first_to_go().map(|(_, id)| id);
        let Some((id, open)) = first.and_then(|id| Some((id, held.connections.remove(&id)?)))
        else {
            return;
        };
        held.shared.count.store(held.connections.len(), Relaxed);
        self.open -= 1;
        self.unknown_peers -= usize::from(!held.known);
        if held.connections.is_empty() {
            self.holders.remove(&loser);
        }
        // The server waits for this unless the connection is closed.
        let _ = open.finish.send(());
        while self.finishing.len() >= most_finishing {
            // Dropping it aborts the connection.
            self.finishing.pop_first();
        }
        self.finishing.insert(id, open.cut);
    }
}

impl<D> Held<D> {
    /// Returns the connection to close first, with its rank.
    fn first_to_go(&self) -> Option<((bool, u64), u64)> {
        let ranked = self.connections.iter();
        ranked.map(|(id, open)| (open.activity.rank(), *id)).min()
    }
}

impl ShareLimits {
    fn of_class(&self, known: bool) -> usize {
        let most = if known {
            self.known
        } else {
            self.unknown_peers
        };
        most.max(1)
    }
}

/// A connection's slot in the table.
#[derive(Debug)]
pub struct Slot<K: Eq + Hash + Clone, D> {
    id: u64,
    key: K,
    activity: Arc<Activity>,
    shared: Arc<Shared<D>>,
    inner: Arc<Inner<K, D>>,
}

impl<K: Eq + Hash + Clone, D> Slot<K, D> {
    /// Records that a request has begun.
    pub fn begin(&self, now: Instant) {
        self.activity.0.store(self.inner.stamp(now) | 1, Relaxed);
    }

    /// Records that the request was answered.
    pub fn end(&self, now: Instant) {
        self.activity.0.store(self.inner.stamp(now), Relaxed);
    }

    /// Returns `true` if the client should be asked to close the connection, because its holder is
    /// near a limit.
    pub fn should_close(&self) -> bool {
        let (limits, count) = (&self.inner.limits, self.shared.count.load(Relaxed));
        let near = count.saturating_mul(4) > limits.each.saturating_mul(3);
        near || (self.inner.crowded.load(Relaxed) && count > self.inner.fair.load(Relaxed))
    }

    /// Returns the data shared by all connections of the holder.
    pub fn data(&self) -> &D {
        &self.shared.data
    }

    /// Returns the holder's identity.
    pub fn holder(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash + Clone, D> Drop for Slot<K, D> {
    fn drop(&mut self) {
        let mut guard = self.inner.lock();
        let table = &mut *guard;
        if let Some(held) = table.holders.get_mut(&self.key)
            && held.connections.remove(&self.id).is_some()
        {
            held.shared.count.store(held.connections.len(), Relaxed);
            table.open -= 1;
            table.unknown_peers -= usize::from(!held.known);
            if held.connections.is_empty() {
                table.holders.remove(&self.key);
            }
            self.inner.publish(table);
        } else {
            table.finishing.remove(&self.id);
        }
    }
}

/// The eviction of a connection, triggered by the admission of another.
#[derive(Debug)]
pub struct Eviction(Option<(oneshot::Receiver<()>, oneshot::Receiver<()>)>);

/// The urgency with which an evicted connection has to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// After its current request.
    Finish,
    /// Now.
    Cut,
}

impl Eviction {
    /// Returns an eviction that never happens.
    pub fn never() -> Self {
        Self(None)
    }

    /// Returns `true` if an eviction can still happen.
    pub(crate) fn can_come(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for the next step of the eviction. Never returns after the last.
    pub(crate) async fn next(&mut self) -> Evicted {
        let Some((finish, cut)) = &mut self.0 else {
            return pending().await;
        };
        if !finish.is_terminated() {
            let _ = finish.await;
            return Evicted::Finish;
        }
        let _ = cut.await;
        self.0 = None;
        Evicted::Cut
    }
}

#[cfg(test)]
mod tests;
