//! Refreshes of an intermediate role's session, on paused time.

use std::sync::atomic::{AtomicU32, Ordering};

use rolegate_core::session::FailureKind;

use super::*;

/// An STS that counts calls and fails on demand.
#[derive(Clone)]
struct Counting {
    clock: Clock,
    calls: Arc<AtomicU32>,
    fails: Arc<Mutex<bool>>,
}

impl AssumeRole for Counting {
    async fn assume_role(&self, key: &SessionKey) -> Result<session::Credentials, Failure> {
        assert_eq!(key.duration_seconds, 3600);
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let from = self.clock.now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if *self.fails.lock() {
            return Err(Failure {
                kind: FailureKind::Final,
                code: "AccessDenied".into(),
                message: "told to fail".into(),
                cause: None,
            });
        }
        let id = format!("ASIA{number}");
        let validity = Validity {
            not_before: from,
            not_after: from + Duration::from_secs(3600),
        };
        Ok(session::Credentials::new(id, "hidden", "hidden", validity))
    }
}

fn fixture() -> (Counting, Arc<AssumedRole<Counting>>) {
    let clock = Clock::tokio("2024-06-01T00:00:00Z".parse().unwrap());
    let sts = Counting {
        clock: clock.clone(),
        calls: Arc::default(),
        fails: Arc::default(),
    };
    let role = IntermediateRole {
        role: RoleArn::parse("arn:aws:iam::123456789012:role/hub").unwrap(),
        external_id: None,
    };
    let assumed = AssumedRole::new(sts.clone(), &role, clock);
    (sts, Arc::new(assumed))
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn used(role: &AssumedRole<Counting>) -> String {
    let credentials = role.provide_credentials().await.unwrap();
    credentials.access_key_id().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_session_is_fetched_once_and_again_at_half_its_life() {
    let (sts, role) = fixture();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let role = role.clone();
        tasks.spawn(async move { used(&role).await });
    }
    while let Some(used) = tasks.join_next().await {
        assert_eq!(used.unwrap(), "ASIA0");
    }
    assert_eq!(sts.calls.load(Ordering::Relaxed), 1);
    pass(1790).await;
    assert_eq!(used(&role).await, "ASIA0");
    pass(20).await;
    // One task refreshes it, and the others do not wait.
    let (first, second) = tokio::join!(used(&role), used(&role));
    assert_eq!((first.as_str(), second.as_str()), ("ASIA1", "ASIA0"));
    assert_eq!(used(&role).await, "ASIA1");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_used_until_it_expires() {
    let (sts, role) = fixture();
    used(&role).await;
    *sts.fails.lock() = true;
    for _ in 0..179 {
        pass(20).await;
        assert_eq!(used(&role).await, "ASIA0");
    }
    pass(20).await;
    let before = sts.calls.load(Ordering::Relaxed);
    for _ in 0..10 {
        let error = role.provide_credentials().await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            cause.contains("its intermediate role hub: AccessDenied"),
            "{cause}"
        );
    }
    assert!(sts.calls.load(Ordering::Relaxed) <= before + 1);
    *sts.fails.lock() = false;
    pass(3).await;
    assert_ne!(used(&role).await, "ASIA0");
}
