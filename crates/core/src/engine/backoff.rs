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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arn::RoleArn;

    /// Keys of sessions as found in a cluster: for few roles, named by namespace and account, or
    /// distinguished only by an external ID.
    fn keys() -> impl Iterator<Item = SessionKey> {
        (0..1000).map(|number| SessionKey {
            role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/r{}", number % 5))
                .unwrap(),
            name: format!("ns-{}.default", number / 20).into(),
            external_id: Some(format!("id-{}", number % 20).into()),
            duration_seconds: 3600,
            limits: None,
        })
    }

    /// Checks that 1,000 parts of a whole fill each tenth of it about as much as any other.
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
        let life = Life {
            from,
            until: from + seconds(10_000),
        };
        are_spread(keys().map(|key| {
            let due = from.duration_until(refresh_at(&key, life)).as_secs_f64();
            (due - 4000.0) / 800.0
        }));
    }

    #[test]
    fn tries_after_failures_of_the_same_moment_are_spread_anew_each_time() {
        let wait = |key: &SessionKey, failures| {
            let wait = after_failure(key, FailureKind::Temporary, failures, seconds(30));
            // The third waits 4 s and up to a quarter more.
            (wait.as_secs_f64() / 2f64.powi(i32::try_from(failures).unwrap() - 1) - 1.0) / 0.25
        };
        for failures in 1..=5 {
            are_spread(keys().map(|key| wait(&key, failures)));
        }
        // Those that met once don't meet again.
        let met: Vec<_> = keys().filter(|key| wait(key, 1) < 0.1).collect();
        let again = met.iter().filter(|key| wait(key, 2) < 0.1).count();
        assert!(again * 3 < met.len(), "{again} of {}", met.len());
    }
}
