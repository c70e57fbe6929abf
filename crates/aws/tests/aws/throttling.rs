//! The driver against an STS that throttles: calls slow down, and none is lost.

use std::time::Duration;

use rolegate_aws::sts::Sts;
use rolegate_core::arn::RoleArn;
use rolegate_core::engine::{Cause, EngineOptions};
use rolegate_core::session::SessionKey;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::test_util::Exposition;
use rolegate_sessions::{SessionMetrics, SessionState, Sessions};

use super::sts::{USER, key, options, service};

#[tokio::test]
async fn all_are_served_though_sts_throttles() {
    let service = service(USER).await;
    service.set_quota(Some(15));
    let clock = Clock::system();
    let mut registry = prometheus_client::registry::Registry::default();
    let (sessions, driver) = Sessions::new(
        Sts::new(options(&service.url())),
        EngineOptions::for_cluster(64),
        clock.clone(),
        SessionMetrics::register(&mut registry),
    );
    let mut task = tokio::task::JoinSet::new();
    task.spawn(driver.run());
    let leases: Vec<_> = (0..30)
        .map(|number| {
            let role = format!("arn:aws:iam::123456789012:role/r{number}");
            let key = SessionKey {
                role: RoleArn::parse(&role).unwrap(),
                ..key()
            };
            let namespace = format!("ns-{}", number % 3).into();
            sessions.lease(key, namespace, Cause::New)
        })
        .collect();
    let all = async {
        for lease in &leases {
            loop {
                let changed = lease.cell().changed();
                if matches!(lease.cell().state(clock.now()), SessionState::Valid(_)) {
                    break;
                }
                changed.await;
            }
        }
    };
    let deadline = Duration::from_secs(60);
    tokio::time::timeout(deadline, all).await.unwrap();
    let text = Exposition::encode(&registry);
    assert!(text.value("sts_rate_limit") < 200.0, "{text}");
    assert!(text.contains("outcome=\"throttled\""), "{text}");
    for line in ["urgent", "prefetch", "allowance"] {
        assert_eq!(
            text.value(&format!("sts_queue_length{{line=\"{line}\"}}")),
            0.0
        );
    }
    assert_eq!(text.value("sts_queue_oldest_wait_seconds"), 0.0);
}
