//! The links on their own: what their streams say is put in, and time is paused.

use rolegate_runtime::clock::Clock;
use tokio::time::advance;

use super::*;
use crate::broker::Proof;

const MINUTE: Duration = Duration::from_secs(60);

/// Links to a port of this machine.
fn links(port: u16) -> Links {
    Links::new(BrokerOptions {
        host: "127.0.0.1".into(),
        port,
        ca: "unread".into(),
        proof: Proof::Token("unread".into()),
        node: "node-1".into(),
        stale: 3 * MINUTE,
        clock: Clock::system(),
    })
}

impl Links {
    /// A stream to `broker` that is up, and what is sent on it.
    fn up(&mut self, broker: &str) -> (LinkId, mpsc::Receiver<v1::FromAgent>) {
        let id = self.next;
        self.next += 1;
        let (orders, receiver) = mpsc::channel(ORDERS);
        let link = Link {
            up: None,
            age: None,
            orders,
            task: self.tasks.spawn(std::future::pending()),
        };
        self.links.insert(id, link);
        let up = LinkEvent::Up {
            broker: broker.into(),
            address: ([127, 0, 0, 1], 1).into(),
        };
        self.heard(id, up);
        (id, receiver)
    }

    fn pulse(&mut self, id: LinkId, age: Duration) -> Option<Heard> {
        let age = u64::try_from(age.as_millis()).unwrap();
        self.heard(id, LinkEvent::Pulse(age))
    }
}

/// Whether a pause is `wait` with its jitter.
fn is_about(pause: Duration, wait: Duration) -> bool {
    // A timer is late by up to a millisecond.
    (wait.mul_f64(0.5)..=wait.mul_f64(1.5) + Duration::from_millis(1)).contains(&pause)
}

fn waits() -> impl Iterator<Item = Duration> {
    let doubled = |wait: &Duration| Some((*wait * 2).min(LAST_WAIT));
    std::iter::successors(Some(FIRST_WAIT), doubled)
}

#[tokio::test(start_paused = true)]
async fn tries_wait_longer_each_time_and_never_in_step() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let mut pauses = [Vec::new(), Vec::new()];
    for pauses in &mut pauses {
        let mut links = links(port);
        assert!(matches!(links.next().await, Heard::Lost(_)));
        for wait in waits().take(10) {
            let before = Instant::now();
            assert!(matches!(links.next().await, Heard::Lost(_)));
            let pause = before.elapsed();
            assert!(is_about(pause, wait), "{pause:?} {wait:?}");
            pauses.push(pause);
        }
        assert_eq!(links.wait, LAST_WAIT);
    }
    let [one, other] = pauses;
    assert_ne!(one, other);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_makes_no_sense_is_dialled_with_growing_pauses() {
    let mut links = links(1);
    for wait in waits().take(10) {
        let _orders = links.up("a");
        let lost = links.reject("it makes no sense".into());
        assert!(matches!(lost, Some(Heard::Lost(_))));
        let pause = links.dial_at - Instant::now();
        assert!(is_about(pause, wait), "{pause:?} {wait:?}");
    }
    // One that was good for a while is dialled at once.
    let _orders = links.up("a");
    assert!(links.dial_at > Instant::now(), "what is up ends no wait");
    advance(STEADY).await;
    links.reject("it was good until now".into());
    assert_eq!((links.dial_at, links.wait), (Instant::now(), FIRST_WAIT));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hears_nothing_is_left_for_one_that_does() {
    let mut links = links(1);
    let (first, _first) = links.up("a");
    let (second, mut orders) = links.up("b");
    assert_eq!(links.serving, Some(first));
    let none = Duration::ZERO;
    assert!(matches!(links.pulse(first, none), Some(Heard::Pulse(0))));
    assert!(links.pulse(second, none).is_none());
    // A quiet cluster: both hear little, and neither is worth a change.
    advance(MINUTE * 4).await;
    assert!(links.pulse(second, MINUTE * 3).is_none());
    let own = links.pulse(first, MINUTE * 3 / 2);
    assert!(matches!(own, Some(Heard::Pulse(90_000))));
    assert!(links.pulse(second, none).is_none());
    // The first goes on saying that it hears nothing.
    advance(MINUTE * 2).await;
    assert!(orders.try_recv().is_err());
    let left = links.pulse(first, MINUTE * 7 / 2 + MINUTE);
    assert!(matches!(left, Some(Heard::Begun)), "{left:?}");
    assert_eq!(links.serving, Some(second));
    let begin = orders.try_recv().unwrap().body;
    assert!(matches!(begin, Some(from_agent::Body::Begin(_))));
    // What the first says now is nothing any more.
    assert!(links.pulse(first, none).is_none());

    // It is the warm one from now on; one that never heard of the cluster serves nobody well.
    let (first, _first) = links.up("a");
    assert!(
        links
            .pulse(first, Duration::from_millis(u64::MAX))
            .is_none()
    );
    assert_eq!(links.serving, Some(second));
    assert!(links.pulse(first, none).is_none());
    let left = links.pulse(second, Duration::from_millis(u64::MAX));
    assert!(matches!(left, Some(Heard::Begun)), "{left:?}");
    assert_eq!(links.serving, Some(first));
}
