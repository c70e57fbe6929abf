//! Tests of the stream pair: stream events are injected, and time is paused.

use rolegate_runtime::clock::Clock;
use tokio::time::advance;

use super::*;
use crate::broker::ClientAuth;

const MINUTE: Duration = Duration::from_secs(60);

/// Returns a stream pair to a port of this machine.
fn streams(port: u16) -> StreamPair {
    StreamPair::new(BrokerOptions {
        host: "127.0.0.1".into(),
        port,
        ca: "unread".into(),
        proof: ClientAuth::Token("unread".into()),
        node: "node-1".into(),
        stale: 3 * MINUTE,
        clock: Clock::system(),
    })
}

impl StreamPair {
    /// Adds a connected stream to `broker`, and returns the messages sent on it.
    fn up(&mut self, broker: &str) -> (StreamId, mpsc::Receiver<v1::FromAgent>) {
        let id = self.next;
        self.next += 1;
        let (orders, receiver) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let stream = Link {
            up: None,
            staleness: Staleness::default(),
            orders,
            task: self.tasks.spawn(std::future::pending()),
        };
        self.streams.insert(id, stream);
        let up = StreamEvent::Connected {
            broker: broker.into(),
            address: ([127, 0, 0, 1], 1).into(),
        };
        self.on_event(id, up);
        (id, receiver)
    }

    fn pulse(&mut self, id: StreamId, age: Duration) -> Option<PairEvent> {
        let age = u64::try_from(age.as_millis()).unwrap();
        self.on_event(id, StreamEvent::Heartbeat(age))
    }
}

/// Returns whether a delay is `wait` with its jitter, which may double it.
fn is_about(pause: Duration, wait: Duration) -> bool {
    // A timer is late by up to a millisecond.
    let late = Duration::from_millis(1);
    (wait - late..=wait * 2 + late).contains(&pause)
}

fn waits() -> impl Iterator<Item = Duration> {
    let doubled = |wait: &Duration| Some((*wait * 2).min(MAX_RETRY_DELAY / 2));
    std::iter::successors(Some(MIN_RETRY_DELAY), doubled)
}

#[tokio::test(start_paused = true)]
async fn retries_back_off_with_jitter() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let mut pauses = [Vec::new(), Vec::new()];
    for pauses in &mut pauses {
        let mut streams = streams(port);
        assert!(matches!(streams.next().await, PairEvent::Lost(_)));
        for wait in waits().take(10) {
            let before = Instant::now();
            assert!(matches!(streams.next().await, PairEvent::Lost(_)));
            let pause = before.elapsed();
            assert!(is_about(pause, wait), "{pause:?} {wait:?}");
            pauses.push(pause);
        }
    }
    let [one, other] = pauses;
    assert_ne!(one, other);
}

#[tokio::test(start_paused = true)]
async fn invalid_brokers_are_redialed_with_backoff() {
    let mut streams = streams(1);
    for wait in waits().take(10) {
        let _orders = streams.up("a");
        let lost = streams.reject("it makes no sense".into());
        assert!(matches!(lost, Some(PairEvent::Lost(_))));
        let pause = streams.dial_at - Instant::now();
        assert!(is_about(pause, wait), "{pause:?} {wait:?}");
    }
    // A stream that worked for a while is redialed at once.
    let _orders = streams.up("a");
    assert!(streams.dial_at > Instant::now(), "what is up ends no wait");
    advance(MIN_STABLE_LIFETIME).await;
    streams.reject("it was good until now".into());
    assert_eq!(streams.dial_at, Instant::now());
    let _orders = streams.up("a");
    streams.reject("it is bad again".into());
    let pause = streams.dial_at - Instant::now();
    assert!(is_about(pause, MIN_RETRY_DELAY), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn stale_brokers_are_replaced_by_fresh_ones() {
    let mut streams = streams(1);
    let (first, _first) = streams.up("a");
    let (second, mut orders) = streams.up("b");
    assert_eq!(streams.serving, Some(first));
    let none = Duration::ZERO;
    assert!(matches!(
        streams.pulse(first, none),
        Some(PairEvent::Heartbeat(0))
    ));
    assert!(streams.pulse(second, none).is_none());
    // In a quiet cluster both streams have few updates. The pair does not switch because of that.
    advance(MINUTE * 4).await;
    assert!(streams.pulse(second, MINUTE * 3).is_none());
    let own = streams.pulse(first, MINUTE * 3 / 2);
    assert!(matches!(own, Some(PairEvent::Heartbeat(90_000))));
    assert!(streams.pulse(second, none).is_none());
    // The first keeps reporting that it has no updates.
    advance(MINUTE * 2).await;
    assert!(orders.try_recv().is_err());
    let left = streams.pulse(first, MINUTE * 7 / 2 + MINUTE);
    assert!(matches!(left, Some(PairEvent::Activated)), "{left:?}");
    assert_eq!(streams.serving, Some(second));
    let activate = orders.try_recv().unwrap().body;
    assert!(matches!(activate, Some(from_agent::Body::Activate(_))));
    // Later messages of the first are ignored.
    assert!(streams.pulse(first, none).is_none());

    // It is the standby from now on. A broker that never had an update serves no node well.
    let (first, _first) = streams.up("a");
    assert!(
        streams
            .pulse(first, Duration::from_millis(u64::MAX))
            .is_none()
    );
    assert_eq!(streams.serving, Some(second));
    assert!(streams.pulse(first, none).is_none());
    let left = streams.pulse(second, Duration::from_millis(u64::MAX));
    assert!(matches!(left, Some(PairEvent::Activated)), "{left:?}");
    assert_eq!(streams.serving, Some(first));
}

#[tokio::test(start_paused = true)]
async fn messages_that_can_wait_leave_half_of_the_queue() {
    let mut streams = streams(1);
    assert!(!streams.has_room(), "no broker is connected");
    let (_id, orders) = streams.up("a");
    let outcomes = || from_agent::Body::Outcomes(v1::Outcomes::default());
    while streams.has_room() && streams.send(outcomes()) {}
    assert_eq!(orders.len(), MAX_QUEUED_MESSAGES / 2);
    while streams.send(outcomes()) {}
    assert_eq!(orders.len(), MAX_QUEUED_MESSAGES);
}

#[tokio::test(start_paused = true)]
async fn a_standby_to_the_active_broker_is_redialed() {
    for (broker, left) in [("a", 1), ("b", 2)] {
        let mut streams = streams(1);
        let (active, _first) = streams.up("a");
        let (_, _second) = streams.up(broker);
        advance(REBALANCE_INTERVAL).await;
        let redialed = Instant::now();
        streams.spread();
        assert_eq!(
            (streams.serving, streams.streams.len()),
            (Some(active), left)
        );
        assert_eq!(streams.dial_at == redialed, left == 1, "{broker}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_a_stream_of_its_own() {
    let mut streams = streams(1);
    streams.dial();
    streams.dial();
    assert_eq!(streams.streams.len(), 2);
}
