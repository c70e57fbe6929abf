//! The driver on paused time. The caller stands in for STS's timing only; the client's tests cover
//! STS's responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rolegate_core::engine::{Cause, EngineOptions};
use rolegate_core::session::{Credentials, Failure, FailureKind, SessionKey, Validity};
use rolegate_core::test_util::session_key;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::test_util::Exposition;
use tokio::task::JoinSet;

use super::*;

const START: &str = "2024-06-01T00:00:00Z";

/// An STS that takes a while, and fails on demand.
#[derive(Clone)]
struct Slow {
    clock: Clock,
    calls: Arc<AtomicU32>,
    takes: Duration,
    fails: Arc<Mutex<Option<FailureKind>>>,
    lifetime: Duration,
}

impl AssumeRole for Slow {
    async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let from = self.clock.now();
        tokio::time::sleep(self.takes).await;
        if let Some(kind) = *self.fails.lock() {
            return Err(Failure {
                kind,
                code: "Told".into(),
                message: "told to fail".into(),
                cause: None,
            });
        }
        let validity = Validity {
            not_before: from,
            not_after: from + self.lifetime,
        };
        let id = format!("ASIA{number}");
        Ok(Credentials::new(id, "hidden", "hidden", validity))
    }
}

struct Fixture {
    sts: Slow,
    sessions: Sessions,
    clock: Clock,
    registry: Registry,
    _driver: JoinSet<()>,
}

fn fixture() -> Fixture {
    bench_with(EngineOptions::default())
}

fn bench_with(options: EngineOptions) -> Fixture {
    let clock = Clock::tokio(START.parse().unwrap());
    let sts = Slow {
        clock: clock.clone(),
        calls: Arc::default(),
        takes: Duration::from_millis(50),
        fails: Arc::default(),
        lifetime: Duration::from_secs(3600),
    };
    let mut registry = Registry::default();
    let metrics = SessionMetrics::register(&mut registry);
    let (sessions, driver) = Sessions::new(sts.clone(), options, clock.clone(), metrics);
    let mut task = JoinSet::new();
    task.spawn(driver.run());
    Fixture {
        sts,
        sessions,
        clock,
        registry,
        _driver: task,
    }
}

impl Fixture {
    fn lease(&self) -> Lease {
        self.lease_of("reader")
    }

    fn lease_of(&self, role: &str) -> Lease {
        self.sessions
            .lease(session_key(role), "default".into(), Cause::New)
    }

    fn oldest_wait(&self) -> f64 {
        Exposition::encode(&self.registry).value("sts_queue_oldest_wait_seconds")
    }

    fn calls(&self) -> u32 {
        self.sts.calls.load(Ordering::Relaxed)
    }

    fn fail(&self, kind: Option<FailureKind>) {
        *self.sts.fails.lock() = kind;
    }
}

async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

async fn served(lease: &Lease, clock: &Clock) -> Arc<Session> {
    loop {
        let changed = lease.cell().changed();
        if let SessionState::Valid(session) = lease.cell().state(clock.now()) {
            return session;
        }
        changed.await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_a_metric() {
    let fixture = bench_with(EngineOptions::for_node(1));
    let _leases = ["a", "b", "c", "d"].map(|role| fixture.lease_of(role));
    assert_eq!(fixture.oldest_wait(), 0.0);
    // A call takes 50 ms, and calls are sequential.
    for waited in [0.0, 0.05, 0.1, 0.0, 0.0] {
        pass(Duration::from_millis(25)).await;
        let metric = fixture.oldest_wait();
        assert!((metric - waited).abs() < 1e-9, "{metric} and not {waited}");
        pass(Duration::from_millis(25)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pain_05_a_herd_waits_for_one_call() {
    let fixture = fixture();
    let leases: Vec<_> = (0..500).map(|_| fixture.lease()).collect();
    let waiting = leases.iter().map(|lease| served(lease, &fixture.clock));
    for session in futures_join(waiting).await {
        assert_eq!(&*session.credentials.access_key_id, "ASIA0");
    }
    assert_eq!(fixture.calls(), 1);
}

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut results = Vec::new();
    for future in futures {
        results.push(future.await);
    }
    results
}

#[tokio::test(start_paused = true)]
async fn pain_09_a_first_caller_who_leaves_fails_nobody() {
    let fixture = fixture();
    let first = fixture.lease();
    first.prioritize();
    pass(Duration::from_millis(10)).await;
    let second = fixture.lease();
    drop(first);
    assert_eq!(
        &*served(&second, &fixture.clock)
            .await
            .credentials
            .access_key_id,
        "ASIA0"
    );
    assert_eq!(fixture.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_wait_for_the_calls_in_flight_alone() {
    let fixture = bench_with(EngineOptions::for_node(64));
    let began = fixture.clock.now();
    let leases: Vec<_> = (0..500)
        .map(|number| fixture.lease_of(&format!("r{number}")))
        .collect();
    leases.iter().for_each(Lease::prioritize);
    for lease in &leases {
        served(lease, &fixture.clock).await;
    }
    let took = began.duration_until(fixture.clock.now());
    assert!(took.as_millis() < 800, "{took}");
}

#[tokio::test(start_paused = true)]
async fn pain_09_none_of_five_thousand_is_dropped() {
    let fixture = bench_with(EngineOptions::for_cluster(64).without_rate_limit());
    let began = fixture.clock.now();
    let leases: Vec<_> = (0..5000)
        .map(|number| fixture.lease_of(&format!("r{number}")))
        .collect();
    for lease in &leases {
        served(lease, &fixture.clock).await;
    }
    assert_eq!(fixture.calls(), 5000);
    let took = began.duration_until(fixture.clock.now());
    assert!(took.as_secs() < 6, "{took}");
}

#[tokio::test(start_paused = true)]
async fn pods_always_get_half_the_life_and_more() {
    let fixture = fixture();
    let lease = fixture.lease();
    served(&lease, &fixture.clock).await;
    for _ in 0..24 * 60 {
        pass(Duration::from_secs(60)).await;
        let session = served(&lease, &fixture.clock).await;
        assert!(
            session
                .credentials
                .validity
                .remaining(fixture.clock.now())
                .as_secs()
                >= 1800
        );
    }
    assert!((50..=61).contains(&fixture.calls()), "{}", fixture.calls());
}

#[tokio::test(start_paused = true)]
async fn pain_07_valid_credentials_survive_sts_and_expired_ones_are_never_served() {
    let fixture = fixture();
    let lease = fixture.lease();
    let until = served(&lease, &fixture.clock)
        .await
        .credentials
        .validity
        .not_after;
    fixture.fail(Some(FailureKind::Temporary));
    while fixture.clock.now() + Duration::from_secs(1) < until {
        assert!(matches!(
            lease.cell().state(fixture.clock.now()),
            SessionState::Valid(_)
        ));
        pass(Duration::from_secs(1)).await;
    }
    pass(Duration::from_secs(1)).await;
    assert!(matches!(
        lease.cell().state(fixture.clock.now()),
        SessionState::Failed(_)
    ));
    fixture.fail(None);
    assert_ne!(
        &*served(&lease, &fixture.clock)
            .await
            .credentials
            .access_key_id,
        "ASIA0"
    );
}

#[tokio::test(start_paused = true)]
async fn pain_06_a_failing_role_is_not_asked_for_again_and_again() {
    let fixture = fixture();
    fixture.fail(Some(FailureKind::Final));
    let lease = fixture.lease();
    for _ in 0..300 {
        lease.prioritize();
        pass(Duration::from_millis(10)).await;
    }
    assert_eq!(fixture.calls(), 1);
    assert!(matches!(
        lease.cell().state(fixture.clock.now()),
        SessionState::Failed(_)
    ));
    // Once the role is fixed, a change of the pod is enough.
    fixture.fail(None);
    lease.retry();
    served(&lease, &fixture.clock).await;
    assert_eq!(fixture.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn unused_sessions_are_wiped_and_not_refreshed() {
    let fixture = fixture();
    let lease = fixture.lease();
    let session = Arc::downgrade(&served(&lease, &fixture.clock).await);
    drop(lease);
    pass(Duration::from_secs(7200)).await;
    assert_eq!(fixture.calls(), 1);
    assert!(session.upgrade().is_none());
    assert_eq!(
        fixture.sessions.stats(fixture.clock.now()),
        SessionStats::default()
    );
    let again = fixture.lease();
    assert_eq!(
        &*served(&again, &fixture.clock)
            .await
            .credentials
            .access_key_id,
        "ASIA1"
    );
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_its_last_handle() {
    let mut fixture = fixture();
    let lease = fixture.lease();
    served(&lease, &fixture.clock).await;
    drop(fixture.sessions);
    drop(lease);
    fixture._driver.join_next().await.unwrap().unwrap();
}
