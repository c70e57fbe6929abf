//! The content of a Lease, and the next step.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;

/// Upper limit of the lease duration requested by a holder.
const MAX_LEASE_DURATION: Duration = Duration::from_secs(600);

/// A Lease as it was read, and the time since which it is unchanged.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Includes the version for conditional writes.
    pub(super) metadata: ObjectMeta,
    pub(super) spec: LeaseSpec,
    /// By this process's monotonic clock.
    pub(super) since: Instant,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is no Lease: create it.
    Create,
    /// The Lease has no holder, or its holder has not renewed it for too long: take it.
    Take,
    /// This candidate holds it: renew it.
    Renew,
    /// Another candidate holds it: wait.
    Wait,
}

/// Returns the next step of `identity`.
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

/// Returns the lease duration requested by the holder.
fn duration(spec: &LeaseSpec) -> Duration {
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).min(MAX_LEASE_DURATION)
}

/// Returns the Lease with `identity` as its holder: renewed, or taken over.
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

/// Returns the Lease without a holder, so that no candidate waits.
pub(super) fn released(before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        // The API server rejects 0.
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..before.clone()
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)
}
