//! Rate limits of Events: repeats of one object are suppressed, and the rates of all objects
//! together and of each namespace are limited.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rolegate_core::token_bucket::{Rate, TokenBucket};
use tokio::time::Instant;

use super::EventReason;

/// Time for which repeats of an Event on the same object are suppressed.
const REPEAT_INTERVAL: Duration = Duration::from_secs(300);

/// The result of a check against the limits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// The object had the same Event recently.
    Repeat,
    /// The limit of all objects or of the namespace is reached.
    TooMany,
}

/// Allows one Event per object and reason in [`REPEAT_INTERVAL`], within the rates of the namespace and of
/// the whole. Only allowed Events are remembered, so the rate bounds its size.
pub(super) struct Limiter {
    count_allowed: HashMap<(Arc<str>, EventReason), Instant>,
    /// The origin of the buckets' times.
    origin: Instant,
    rate: Rate,
    all: TokenBucket<Duration>,
    /// `None` if namespaces have no limits of their own.
    namespace_rate: Option<Rate>,
    /// Buckets of the namespaces that are not full.
    namespaces: HashMap<Arc<str>, TokenBucket<Duration>>,
}

impl Limiter {
    /// Creates the limits for the pods of a node.
    pub(super) fn for_node() -> Self {
        let rate = Rate {
            burst: 20.0,
            per_second: 1.0,
        };
        Self::new(rate, None)
    }

    /// Creates the limits for a whole cluster, of which one namespace gets a small part.
    pub(super) fn for_cluster() -> Self {
        let all = Rate {
            burst: 60.0,
            per_second: 5.0,
        };
        let namespace = Rate {
            burst: 20.0,
            per_second: 0.2,
        };
        Self::new(all, Some(namespace))
    }

    fn new(rate: Rate, namespace_rate: Option<Rate>) -> Self {
        Self {
            count_allowed: HashMap::new(),
            origin: Instant::now(),
            rate,
            all: TokenBucket::full(rate, Duration::ZERO),
            namespace_rate,
            namespaces: HashMap::new(),
        }
    }

    /// Checks an Event on an object of `namespace` and counts it if allowed.
    pub(super) fn ask(
        &mut self,
        uid: &Arc<str>,
        namespace: &Arc<str>,
        reason: EventReason,
        now: Instant,
    ) -> Verdict {
        let key = (Arc::clone(uid), reason);
        if self
            .count_allowed
            .get(&key)
            .is_some_and(|&count_allowed| now.duration_since(count_allowed) < REPEAT_INTERVAL)
        {
            return Verdict::Repeat;
        }
        let since = now.duration_since(self.origin);
        let mut all = self.all;
        if !all.take(self.rate, since) {
            return Verdict::TooMany;
        }
        if let Some(rate) = self.namespace_rate {
            self.namespaces.retain(|_, bucket| {
                bucket.refill(rate, since);
                !bucket.is_full(rate)
            });
            let kept = self.namespaces.get(namespace).copied();
            let mut bucket = kept.unwrap_or_else(|| TokenBucket::full(rate, since));
            if !bucket.take(rate, since) {
                return Verdict::TooMany;
            }
            self.namespaces.insert(Arc::clone(namespace), bucket);
        }
        self.all = all;
        self.count_allowed
            .retain(|_, &mut count_allowed| now.duration_since(count_allowed) < REPEAT_INTERVAL);
        self.count_allowed.insert(key, now);
        Verdict::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: EventReason = EventReason::RoleForbidden;

    fn text(number: u32) -> Arc<str> {
        number.to_string().into()
    }

    /// Returns how many of `pods` in a namespace are allowed.
    fn count_allowed(
        limiter: &mut Limiter,
        pods: std::ops::Range<u32>,
        namespace: u32,
        now: Instant,
    ) -> u32 {
        let verdicts = pods.map(|pod| limiter.ask(&text(pod), &text(namespace), DENIED, now));
        let allowed = verdicts.filter(|verdict| *verdict == Verdict::Allowed);
        u32::try_from(allowed.count()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_suppressed_per_reason_for_five_minutes() {
        let mut limiter = Limiter::for_node();
        let start = Instant::now();
        let mut ask = |reason, after| limiter.ask(&text(1), &text(0), reason, start + after);
        let minute = Duration::from_secs(60);
        assert_eq!(ask(DENIED, Duration::ZERO), Verdict::Allowed);
        assert_eq!(ask(DENIED, minute), Verdict::Repeat);
        assert_eq!(ask(EventReason::CredentialError, minute), Verdict::Allowed);
        assert_eq!(ask(DENIED, minute * 4), Verdict::Repeat);
        assert_eq!(ask(DENIED, minute * 5), Verdict::Allowed);
    }

    #[tokio::test(start_paused = true)]
    async fn all_pods_together_are_bounded_and_so_is_what_is_kept() {
        let second = Duration::from_secs(1);
        for mut limiter in [Limiter::for_node(), Limiter::for_cluster()] {
            let Rate { burst, per_second } = limiter.rate;
            let (burst, a_second) = (burst as u32, per_second as u32);
            let mut now = Instant::now();
            let mut allowed = 0;
            for tenth in 0..10_000 {
                now += second / 10;
                // Each in a namespace of its own.
                allowed += count_allowed(&mut limiter, tenth..tenth + 1, tenth, now);
            }
            let most = 1000 * a_second;
            assert!((most..=most + burst).contains(&allowed), "{allowed}");
            let kept = limiter.count_allowed.len();
            assert!(kept <= (300 * a_second + burst) as usize, "{kept}");
            let kept = limiter.namespaces.len();
            assert!(kept <= (5 * a_second + burst) as usize, "{kept}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_time_saves_up_no_more_than_a_burst() {
        let mut limiter = Limiter::for_node();
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(
            count_allowed(&mut limiter, 0..1000, 0, later),
            limiter.rate.burst as u32
        );
        let next = later + Duration::from_secs(1);
        assert_eq!(count_allowed(&mut limiter, 5000..5001, 0, next), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_have_rate_limits_of_their_own() {
        let mut limiter = Limiter::for_cluster();
        let mut now = Instant::now();
        assert_eq!(count_allowed(&mut limiter, 0..100, 1, now), 20);
        assert_eq!(count_allowed(&mut limiter, 100..101, 2, now), 1);
        // Dropped Events do not use up the shared limit, however long it continues.
        for second in 1..1000 {
            now += Duration::from_secs(1);
            let first = second * 1000;
            assert!(count_allowed(&mut limiter, first..first + 100, 1, now) <= 1);
            assert_eq!(
                count_allowed(&mut limiter, first + 100..first + 101, 1000 + second, now),
                1
            );
        }
    }
}
