//! Tests of which connection is closed, with a clock set by hand.

use std::collections::HashSet;

use super::*;

/// Expects some addresses, and records the reports.
#[derive(Default)]
struct Watched {
    expected: HashSet<IpAddr>,
    closed: Mutex<Vec<Limit>>,
    usage: Mutex<Usage>,
}

impl Peers for Watched {
    fn is_expected(&self, address: IpAddr) -> bool {
        self.expected.contains(&address)
    }

    fn closed(&self, limit: Limit) {
        self.closed.lock().push(limit);
    }

    fn usage(&self, usage: Usage) {
        *self.usage.lock() = usage;
    }
}

const LIMITS: Limits = Limits {
    connections: 80,
    per_peer: 2,
    streams: 1,
    unused: Duration::from_secs(45),
};

fn address(n: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + n).to_be_bytes())
}

fn agent() -> IpAddr {
    [192, 0, 2, 1].into()
}

fn connections(limits: Limits) -> (Arc<Connections>, Arc<Watched>) {
    let peers = Arc::new(Watched {
        expected: [agent()].into(),
        ..Watched::default()
    });
    (Connections::new(limits, peers.clone()), peers)
}

fn open(connections: &Arc<Connections>, from: IpAddr) -> Arc<Accepted> {
    Arc::new(connections.accept(from).unwrap())
}

fn is_evicted(accepted: &Accepted) -> bool {
    accepted.evicted.is_cancelled()
}

#[tokio::test(start_paused = true)]
async fn the_oldest_unauthenticated_connection_is_closed_first() {
    let (connections, peers) = connections(LIMITS);
    let held: Vec<_> = (0..25).map(|n| open(&connections, address(n))).collect();
    let evicted: Vec<_> = held.iter().map(|it| is_evicted(it)).collect();
    assert_eq!(evicted, [vec![true; 15], vec![false; 10]].concat());
    assert_eq!(*peers.closed.lock(), [Limit::Unauthenticated; 15]);
    let usage = *peers.usage.lock();
    assert_eq!((usage.authenticated, usage.unauthenticated), (0, 10));
    assert_eq!(usage.reached, Some(Limit::Unauthenticated));
    tokio::time::advance(LIMIT_REPORT_TIME).await;
    connections.report_usage();
    assert_eq!(peers.usage.lock().reached, None);
    // Closing a connection does not affect the others.
    drop(held);
    assert_eq!(peers.usage.lock().unauthenticated, 0);
    assert!(connections.state().by_peer.is_empty());
}

#[tokio::test(start_paused = true)]
async fn unknown_peers_take_no_connections_from_others() {
    let (connections, _) = connections(LIMITS);
    let expected = open(&connections, agent());
    let unknown_peer = open(&connections, address(0));
    assert!(Authentication::of(&unknown_peer).succeed());
    let flood: Vec<_> = (1..500).map(|n| open(&connections, address(n))).collect();
    assert!(!is_evicted(&expected) && !is_evicted(&unknown_peer));
    assert!(is_evicted(&flood[0]));
    // Nor do expected peers affect others.
    let (connections, _) = self::connections(LIMITS);
    let unknown_peer = open(&connections, address(0));
    let own: Vec<_> = (0..5).map(|_| open(&connections, agent())).collect();
    assert!(!is_evicted(&unknown_peer));
    assert_eq!(own.iter().filter(|it| is_evicted(it)).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn unauthenticated_connections_are_limited_per_peer() {
    let (connections, peers) = connections(LIMITS);
    let other = open(&connections, address(1));
    let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
    let held: Vec<_> = (0..5).map(|n| open(&connections, v6(n))).collect();
    let evicted: Vec<_> = held.iter().map(|it| is_evicted(it)).collect();
    assert_eq!(evicted, [true, true, true, false, false]);
    assert!(!is_evicted(&other));
    assert_eq!(*peers.closed.lock(), [Limit::Peer; 3]);
    // Expected peers of one network count separately.
    let nodes: Vec<_> = (100..110).map(v6).collect();
    let peers = Watched {
        expected: nodes.iter().copied().collect(),
        ..Watched::default()
    };
    let connections = Connections::new(LIMITS, Arc::new(peers));
    let held: Vec<_> = nodes.iter().map(|it| open(&connections, *it)).collect();
    assert!(held.iter().all(|it| !is_evicted(it)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_opens_connections_no_faster_than_it_may() {
    let (connections, peers) = connections(LIMITS);
    let accepted = |from| {
        let all = (0..100).map(|_| connections.accept(from));
        all.filter(Option::is_some).count()
    };
    assert_eq!(accepted(address(1)), 8);
    assert!(peers.closed.lock().contains(&Limit::Rate));
    assert_eq!(accepted(address(2)), 8, "a peer is refused for another one");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(accepted(address(1)), 2);
}

#[tokio::test(start_paused = true)]
async fn authenticated_connections_have_an_end_too() {
    let (connections, peers) = connections(LIMITS);
    let mut held = Vec::new();
    for n in 0..60 {
        held.push(open(&connections, address(n)));
        assert!(Authentication::of(&held[n as usize]).succeed(), "{n}");
    }
    // Authenticating again counts once.
    assert!(Authentication::of(&held[0]).succeed());
    let late = open(&connections, address(60));
    assert!(!Authentication::of(&late).succeed());
    assert!(late.closing().is_cancelled());
    assert_eq!(*peers.closed.lock(), [Limit::Authenticated]);
    drop(held.pop());
    let next = open(&connections, address(61));
    assert!(Authentication::of(&next).succeed());
    assert_eq!(peers.usage.lock().authenticated, 60);
}

#[tokio::test(start_paused = true)]
async fn late_authentication_closes_the_connection() {
    let (connections, _) = connections(LIMITS);
    let first = open(&connections, address(0));
    let _flood: Vec<_> = (1..20).map(|n| open(&connections, address(n))).collect();
    assert!(is_evicted(&first));
    assert!(!Authentication::of(&first).succeed());
    assert!(first.closing().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_port_for_one_connection_takes_one() {
    let limits = Limits {
        connections: 1,
        ..LIMITS
    };
    let (connections, _) = connections(limits);
    let only = open(&connections, address(0));
    assert!(Authentication::of(&only).succeed());
    let next = open(&connections, address(1));
    assert!(!Authentication::of(&next).succeed());
}
