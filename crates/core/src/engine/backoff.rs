//! When to call again: refresh by jitter, and the waits after failures.

use jiff::{SignedDuration, Timestamp};

use crate::engine::seconds;
use crate::session::{FailureKind, Life, SessionKey};
use crate::session_name::fnv1a;

/// Shortest time between two fetches of one session, however short its life.
pub(super) const LEAST_REFRESH: SignedDuration = seconds(5);

/// A number in 0..1 that belongs to the key, so that sessions fetched together do not stay
/// together, and that tests can rely on.
fn jitter(key: &SessionKey, salt: u32) -> f64 {
    let hash = fnv1a(&format!(
        "{}\0{}\0{}\0{salt}",
        key.role,
        key.name,
        key.external_id.as_deref().unwrap_or_default()
    ));
    // The top 32 bits, finalised: FNV's high bits of short texts are poorly mixed.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    f64::from(u32::try_from(mixed >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// 40 to 48 % into the life, so that what is served always has more than half of it left.
pub(super) fn refresh_at(key: &SessionKey, life: Life) -> Timestamp {
    let whole = life.from.duration_until(life.until);
    let part = 0.40 + 0.08 * jitter(key, 0);
    life.from + SignedDuration::from_secs_f64(whole.as_secs_f64() * part)
}

/// How long to wait after the `failures`th failure of its kind in a row.
pub(super) fn after_failure(
    key: &SessionKey,
    kind: FailureKind,
    failures: u32,
    final_retry: SignedDuration,
) -> SignedDuration {
    let final_retry = final_retry.as_secs_f64();
    let (first, most) = match kind {
        FailureKind::Final => (final_retry, final_retry.max(300.0)),
        FailureKind::Throttled => (2.0, 60.0),
        FailureKind::Temporary => (1.0, 60.0),
    };
    let doubled: f64 = first * 2f64.powi(i32::try_from(failures.clamp(1, 16)).unwrap_or(16) - 1);
    // Up to a quarter longer, never shorter.
    let wait = doubled.min(most) * (1.0 + 0.25 * jitter(key, failures));
    SignedDuration::from_secs_f64(wait)
}
