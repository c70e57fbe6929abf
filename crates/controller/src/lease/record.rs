//! What a Lease says, and what follows from it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;

/// The longest that a holder is waited for, whatever it asks.
const LONGEST: Duration = Duration::from_secs(600);

/// A Lease as it was seen, and since when it is the same.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// With the version that writes are bound to.
    pub(super) metadata: ObjectMeta,
    pub(super) spec: LeaseSpec,
    /// By our own clock.
    pub(super) since: Instant,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is no Lease: make it.
    Create,
    /// Nobody holds it, or its holder has not been heard of for too long: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another holds it.
    Wait,
}

/// The next step of `identity`.
pub(super) fn step(identity: &str, seen: Option<&Seen>, now: Instant) -> Step {
    let Some(seen) = seen else {
        return Step::Create;
    };
    match seen.spec.holder_identity.as_deref().unwrap_or_default() {
        "" => Step::Take,
        holder if holder == identity => Step::Renew,
        _ if now < seen.since + duration(&seen.spec) => Step::Wait,
        _ => Step::Take,
    }
}

/// How long its holder has asked to be waited for.
fn duration(spec: &LeaseSpec) -> Duration {
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).min(LONGEST)
}

/// The Lease with us as its holder: renewed, or taken from whoever had it before.
pub(super) fn held(
    identity: &str,
    before: Option<&LeaseSpec>,
    duration: Duration,
    now: Timestamp,
) -> LeaseSpec {
    let mut spec = before.cloned().unwrap_or_default();
    let renews = spec.holder_identity.as_deref() == Some(identity);
    if !renews {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(match before {
            Some(before) => before
                .lease_transitions
                .unwrap_or_default()
                .saturating_add(1),
            None => 0,
        });
        spec.holder_identity = Some(identity.to_owned());
    }
    spec.lease_duration_seconds = Some(seconds(duration));
    spec.renew_time = Some(MicroTime(now));
    spec
}

/// The Lease without a holder: nobody has to wait.
pub(super) fn released(before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        // The API server takes no 0.
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..before.clone()
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)
}
