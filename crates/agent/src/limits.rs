//! Limits on connections, waiting requests and forwarded requests, per pod and for all pods, so
//! that a busy pod does not affect its neighbors. Pods are counted by UID, so that a pod with
//! several addresses counts once.

mod forwards;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rolegate_runtime::serve;
use rolegate_runtime::shares::{Admitted, Eviction, Holder, Limit, ShareLimits, Shares, Slot};

use self::forwards::{Exhausted, Forwards};
pub use crate::metrics::AgentLimit;
use crate::metrics::AgentMetrics;

/// The fraction (1/n) of all connections that addresses of unknown pods may use.
const UNKNOWN_PEERS_FRACTION: usize = 4;

/// The limits per pod and for all pods.
#[derive(Debug, Clone, Copy)]
pub struct LimitOptions {
    /// Connections of all pods.
    pub connections: usize,
    /// Connections of one pod.
    pub connections_per_pod: u32,
    /// Requests of one pod that wait for the watch or for STS.
    pub waiters_per_pod: u32,
    /// Requests per second of one pod that are forwarded to the node's metadata service, whose own
    /// limit the whole node shares.
    pub forwards_per_second: u32,
    /// Forwarded requests per second of all pods together.
    pub forwards_in_all: u32,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            connections: 2048,
            // Enough for a large machine's worker processes with one connection each.
            connections_per_pod: 256,
            // One per connection.
            waiters_per_pod: 256,
            forwards_per_second: 50,
            forwards_in_all: 200,
        }
    }
}

/// The client that a request is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The pod with this UID.
    Pod(Arc<str>),
    /// An address that belongs to no known pod.
    Address(IpAddr),
}

/// The current usage of limits.
#[derive(Debug)]
pub struct Limits {
    options: LimitOptions,
    shares: Shares<Peer, Waiters>,
    forwards: Forwards,
    metrics: AgentMetrics,
    /// The second in which each limit was last reached.
    reached: [AtomicI64; AgentLimit::ALL.len()],
}

/// Waiting requests of one pod.
#[derive(Debug, Default)]
struct Waiters(AtomicU32);

impl Limits {
    /// Creates limits without usage.
    pub fn new(options: LimitOptions, metrics: AgentMetrics) -> Arc<Self> {
        let each = usize::try_from(options.connections_per_pod).unwrap_or(usize::MAX);
        Arc::new(Self {
            shares: Shares::new(ShareLimits {
                total: options.connections,
                each,
                known: options.connections,
                unknown_peers: (options.connections / UNKNOWN_PEERS_FRACTION).max(1),
            }),
            forwards: Forwards::new(options.forwards_per_second, options.forwards_in_all),
            options,
            metrics,
            reached: std::array::from_fn(|_| AtomicI64::new(i64::MIN)),
        })
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.shares.open()
    }

    /// Returns the maximum number of connections, including evicted ones that are still finishing.
    pub fn most_connections(&self) -> usize {
        self.shares.most()
    }

    /// Returns the limits of a server whose connections are permitted here.
    pub fn of_server(&self, header_time: Duration, header_bytes: usize) -> serve::Limits {
        serve::Limits {
            // These limits evict connections and never wait.
            connections: self.most_connections(),
            header_time,
            header_bytes,
            ..serve::Limits::default()
        }
    }

    /// Takes a permit for a connection of `peer`, which is released on drop. If all permits are
    /// taken, another connection is evicted. Peers that are not `known` share a part of all
    /// permits, since otherwise a client that forges addresses could take them all.
    pub fn connect(
        self: &Arc<Self>,
        peer: Peer,
        known: bool,
        now: Timestamp,
    ) -> (Connection, Eviction) {
        let Admitted {
            slot,
            eviction,
            evicted,
        } = self.shares.admit(Holder { key: peer, known });
        if let Some(limit) = evicted {
            let limit = match (limit, known) {
                (Limit::Each, false) => AgentLimit::UnknownPeerConnections,
                (limit, _) => limit.into(),
            };
            self.reach(limit, now);
        }
        let limits = self.clone();
        (Connection { slot, limits }, eviction)
    }

    /// Returns the limits that were reached within `period`.
    pub fn reached_within(&self, period: Duration, now: Timestamp) -> Vec<AgentLimit> {
        let period = i64::try_from(period.as_secs()).unwrap_or(i64::MAX);
        let since = now.as_second().saturating_sub(period);
        let all = AgentLimit::ALL.into_iter().zip(&self.reached);
        all.filter(|(_, last)| last.load(Relaxed) >= since)
            .map(|(limit, _)| limit)
            .collect()
    }

    fn reach(&self, limit: AgentLimit, now: Timestamp) {
        self.metrics.limit_reached(limit);
        if let Some(last) = self.reached.get(limit as usize) {
            last.store(now.as_second(), Relaxed);
        }
    }
}

/// A connection's permit.
#[derive(Debug)]
pub struct Connection {
    slot: Slot<Peer, Waiters>,
    limits: Arc<Limits>,
}

impl Connection {
    /// Records the start of a request.
    pub fn begin(&self, now: Instant) {
        self.slot.begin(now);
    }

    /// Records the end of a request. Returns true if the connection should close after the
    /// response, since the pod is near a limit.
    pub fn end(&self, now: Instant) -> bool {
        self.slot.end(now);
        self.slot.should_close()
    }

    /// Takes a permit for a waiting request. Returns `None` if too many requests of this pod wait
    /// already.
    pub fn wait(&self, now: Timestamp) -> Option<Waiter<'_>> {
        let most = self.limits.options.waiters_per_pod;
        let waiters = self.slot.data();
        let more = |count| (count < most).then_some(count + 1);
        if waiters.0.fetch_update(Relaxed, Relaxed, more).is_err() {
            self.limits.reach(AgentLimit::PodWaiters, now);
            return None;
        }
        Some(Waiter(waiters))
    }

    /// Returns whether one more request may be forwarded now, for the pod `uid` if it is known.
    pub fn forward(&self, uid: Option<&Arc<str>>, now: Timestamp) -> bool {
        let peer = match uid {
            Some(uid) => &Peer::Pod(uid.clone()),
            None => self.slot.holder(),
        };
        self.take(peer, [AgentLimit::PodForwards, AgentLimit::Forwards], now)
    }

    /// Returns whether one more token of this client may be verified now. An endpoint that verifies
    /// tokens forwards nothing, so the limits of forwarded requests are those of verifications.
    pub fn verify(&self, now: Timestamp) -> bool {
        let limits = [AgentLimit::PodVerifications, AgentLimit::Verifications];
        self.take(self.slot.holder(), limits, now)
    }

    fn take(&self, peer: &Peer, [own, all]: [AgentLimit; 2], now: Timestamp) -> bool {
        let limit = match self.limits.forwards.take(peer, now) {
            Ok(()) => return true,
            Err(Exhausted::Own) => own,
            Err(Exhausted::All) => all,
        };
        self.limits.reach(limit, now);
        false
    }
}

/// The permit of a waiting request.
#[derive(Debug)]
pub struct Waiter<'a>(&'a Waiters);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn limits(options: LimitOptions) -> Arc<Limits> {
        Limits::new(options, AgentMetrics::register(&mut Registry::default()))
    }

    fn pod(uid: &str) -> Peer {
        Peer::Pod(uid.into())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn each_limit_is_reported_by_name_for_the_period() {
        let limits = limits(LimitOptions {
            connections: 3,
            connections_per_pod: 2,
            waiters_per_pod: 1,
            forwards_per_second: 1,
            forwards_in_all: 2,
        });
        assert_eq!(limits.reached_within(Duration::from_secs(60), at(100)), []);
        let first = limits.connect(pod("a"), true, at(100)).0;
        let second = limits.connect(pod("a"), true, at(100)).0;
        let _third = limits.connect(pod("a"), true, at(100)).0;
        let minute = Duration::from_secs(60);
        assert_eq!(
            limits.reached_within(minute, at(100)),
            [AgentLimit::PodConnections]
        );
        let other = limits.connect(pod("b"), true, at(100)).0;
        let third_pod = limits.connect(pod("c"), true, at(100)).0;
        assert!(
            limits
                .reached_within(minute, at(100))
                .contains(&AgentLimit::Connections)
        );
        let _waiter = other.wait(at(100)).unwrap();
        assert!(other.wait(at(100)).is_none());
        assert!(first.forward(None, at(100)) && !second.forward(None, at(100)));
        assert!(third_pod.forward(None, at(100)));
        let fourth = limits.connect(pod("d"), true, at(100)).0;
        assert!(!fourth.forward(None, at(100)));
        assert!(!first.verify(at(100)) && !fourth.verify(at(100)));
        let _stranger = limits.connect(Peer::Address([10, 0, 0, 1].into()), false, at(100));
        let _stranger = limits.connect(Peer::Address([10, 0, 0, 2].into()), false, at(100));
        assert_eq!(limits.reached_within(minute, at(160)), AgentLimit::ALL);
        assert_eq!(limits.reached_within(minute, at(161)), []);
        for (number, limit) in AgentLimit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, number, "{}", limit.as_str());
        }
    }

    #[test]
    fn waiters_count_per_pod_and_not_per_connection() {
        let limits = limits(LimitOptions {
            waiters_per_pod: 1,
            ..LimitOptions::default()
        });
        let connection = limits.connect(pod("a"), true, at(10)).0;
        let other = limits.connect(pod("a"), true, at(10)).0;
        let neighbour = limits.connect(pod("b"), true, at(10)).0;
        let waiter = connection.wait(at(10)).unwrap();
        assert!(other.wait(at(10)).is_none());
        assert!(neighbour.wait(at(10)).is_some());
        // Any number of short-lived addresses does not evict a connected pod's entry.
        for n in 0..5000 {
            let address = std::net::Ipv4Addr::from_bits(n).into();
            drop(limits.connect(Peer::Address(address), false, at(10)));
        }
        assert!(other.wait(at(10)).is_none());
        drop(waiter);
        assert!(other.wait(at(10)).is_some());
    }

    #[test]
    fn a_pod_near_its_limit_closes_connections() {
        let limits = limits(LimitOptions {
            connections_per_pod: 2,
            ..LimitOptions::default()
        });
        let now = Instant::now();
        let first = limits.connect(pod("a"), true, at(10)).0;
        assert!(!first.end(now));
        let second = limits.connect(pod("a"), true, at(10)).0;
        assert!(first.end(now));
        assert_eq!(limits.connections(), 2);
        drop((first, second));
        assert_eq!(limits.connections(), 0);
    }

    #[test]
    fn a_new_connection_brings_no_further_forwards() {
        let limits = limits(LimitOptions {
            forwards_per_second: 2,
            ..LimitOptions::default()
        });
        let uid = "a".into();
        let forwarded = |n: u8| {
            // Another address, before and after it belongs to a known pod.
            let peer = Peer::Address([10, 0, 0, n].into());
            let connection = limits.connect(peer, false, at(10)).0;
            connection.forward(Some(&uid), at(10))
        };
        assert_eq!((0..5).filter(|n| forwarded(*n)).count(), 2);
    }

    #[test]
    fn limits_are_labelled_apart() {
        let labels = AgentLimit::ALL.map(AgentLimit::as_str);
        assert_eq!(
            labels,
            [
                "connections",
                "pod_connections",
                "unknown_peer_connections",
                "pod_waiters",
                "pod_forwards",
                "forwards",
                "pod_verifications",
                "verifications",
            ]
        );
    }
}
