//! Refresh times with jitter, and delays after failures.

use jiff::{SignedDuration, Timestamp};

use crate::engine::seconds;
use crate::session::{FailureKind, SessionKey, Validity};
use crate::session_name::fnv1a;

/// Minimum time between two fetches of one session, however short its validity.
pub(super) const MIN_REFRESH_INTERVAL: SignedDuration = seconds(5);

/// Returns a number in 0..1 derived from the key. It spreads sessions that were fetched together
/// and is reproducible in tests.
fn jitter(key: &SessionKey, salt: u32) -> f64 {
    let hash = fnv1a(&format!(
        "{}\0{}\0{}\0{salt}",
        key.role,
        key.name,
        key.external_id.as_deref().unwrap_or_default()
    ));
    // Uses the top 32 bits after finalization, since FNV mixes the high bits of short texts poorly.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    f64::from(u32::try_from(mixed >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// Returns a time at 40 to 48 % of the validity, so that served sessions have more than half of it
/// left.
pub(super) fn refresh_at(key: &SessionKey, lifetime: Validity) -> Timestamp {
    let whole = lifetime.not_before.duration_until(lifetime.not_after);
    let part = 0.40 + 0.08 * jitter(key, 0);
    lifetime.not_before + SignedDuration::from_secs_f64(whole.as_secs_f64() * part)
}

/// Returns the delay after the `failures`th consecutive failure of one kind. Unlike an iterator of
/// delays, it needs neither state nor random numbers, so that decisions are reproducible.
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
    // Extends the delay by up to a quarter; never shortens it.
    let wait = doubled.min(most) * (1.0 + 0.25 * jitter(key, failures));
    SignedDuration::from_secs_f64(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arn::RoleArn;

    /// Typical session keys of a cluster: few roles, with names from namespace and service account,
    /// or distinguished only by an external ID.
    fn keys() -> impl Iterator<Item = SessionKey> {
        (0..1000).map(|number| SessionKey {
            role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/r{}", number % 5))
                .unwrap(),
            name: format!("ns-{}.default", number / 20).into(),
            external_id: Some(format!("id-{}", number % 20).into()),
            duration_seconds: 3600,
            limits: None,
            target: None,
        })
    }

    /// Checks that 1,000 fractions are spread evenly over the ten deciles.
    fn are_spread(parts: impl Iterator<Item = f64>) {
        let mut tenths = [0; 10];
        for part in parts {
            assert!((0.0..=1.0).contains(&part), "{part}");
            tenths[((part * 10.0) as usize).min(9)] += 1;
        }
        assert!(
            tenths.iter().all(|count| (60..=140).contains(count)),
            "{tenths:?}"
        );
    }

    #[test]
    fn refreshes_of_sessions_that_were_fetched_together_are_spread() {
        let from = Timestamp::from_second(1_800_000_000).unwrap();
        let lifetime = Validity {
            not_before: from,
            not_after: from + seconds(10_000),
        };
        are_spread(keys().map(|key| {
            let due = from
                .duration_until(refresh_at(&key, lifetime))
                .as_secs_f64();
            (due - 4000.0) / 800.0
        }));
    }

    #[test]
    fn simultaneous_failures_are_retried_at_different_times() {
        let wait = |key: &SessionKey, failures| {
            let wait = after_failure(key, FailureKind::Temporary, failures, seconds(30));
            // The third delay is 4 s plus up to a quarter.
            (wait.as_secs_f64() / 2f64.powi(i32::try_from(failures).unwrap() - 1) - 1.0) / 0.25
        };
        for failures in 1..=5 {
            are_spread(keys().map(|key| wait(&key, failures)));
        }
        // Keys that collided once do not collide again.
        let met: Vec<_> = keys().filter(|key| wait(key, 1) < 0.1).collect();
        let again = met.iter().filter(|key| wait(key, 2) < 0.1).count();
        assert!(again * 3 < met.len(), "{again} of {}", met.len());
    }
}
