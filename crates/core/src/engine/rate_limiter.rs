//! An adaptive limit of calls per second: a token bucket whose rate is halved when STS throttles
//! and then recovers gradually.

use jiff::{SignedDuration, Timestamp};

/// Capacity of the bucket in seconds of calls, and at least one call. Any interval has at most as
/// many calls as its rate allows, plus this burst.
const BURST_SECONDS: f64 = 0.1;
/// Minimum rate in calls per second, unless the limit is lower.
const MIN_RATE: f64 = 5.0;
/// STS's quota for an account and Region, in calls per second. An engine without a configured limit
/// lifts the limit set by throttling at this rate.
const STS_QUOTA_RATE: f64 = 600.0;
/// Time to recover from zero to the full rate, in seconds.
const RECOVERY_SECONDS: f64 = 30.0;
/// Time after a slowdown in which further throttling belongs to it, in seconds, since calls in
/// flight are throttled together.
const THROTTLING_WINDOW_SECONDS: f64 = 1.0;

#[derive(Debug)]
pub(super) struct AdaptiveRateLimiter {
    /// The configured limit; infinite if unlimited.
    limit: f64,
    /// The current rate.
    rate: f64,
    tokens: f64,
    at: Timestamp,
    slowed: Option<Timestamp>,
    calls: Meter,
}

impl AdaptiveRateLimiter {
    /// Creates a limiter of `limit` calls per second, 0 for no limit.
    pub(super) fn new(limit: u32) -> Self {
        let limit = match limit {
            0 => f64::INFINITY,
            limit => f64::from(limit),
        };
        Self {
            limit,
            rate: limit,
            tokens: burst(limit),
            at: Timestamp::UNIX_EPOCH,
            slowed: None,
            calls: Meter::default(),
        }
    }

    /// Returns the time to wait as an error if no call may be made now.
    pub(super) fn ready(&mut self, now: Timestamp) -> Result<(), SignedDuration> {
        self.refill(now);
        if self.rate.is_infinite() || self.tokens >= 1.0 {
            return Ok(());
        }
        let wait = SignedDuration::from_secs_f64((1.0 - self.tokens) / self.rate);
        Err(wait.max(SignedDuration::from_millis(1)))
    }

    /// Counts a call.
    pub(super) fn spend(&mut self, now: Timestamp) {
        self.tokens -= 1.0;
        self.calls.count(now);
    }

    /// Halves the rate at which calls are being made, which may be below the limit.
    pub(super) fn throttled(&mut self, now: Timestamp) {
        self.refill(now);
        let same = |slowed: Timestamp| {
            (0.0..THROTTLING_WINDOW_SECONDS).contains(&slowed.duration_until(now).as_secs_f64())
        };
        if self.slowed.is_some_and(same) {
            return;
        }
        self.slowed = Some(now);
        let calling = self.calls.rate(now).min(self.rate).min(self.full_rate());
        self.rate = (calling / 2.0).max(MIN_RATE.min(self.limit));
        self.tokens = self.tokens.min(0.0);
    }

    /// Returns the current limit of calls per second; `None` for no limit.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.is_finite().then_some(self.rate)
    }

    /// Returns the time at which the full rate is restored; `None` if it is.
    pub(super) fn recovered_at(&self) -> Option<Timestamp> {
        let missing_rate = self.full_rate() - self.rate;
        (self.rate < self.limit).then(|| {
            let wait =
                SignedDuration::from_secs_f64(missing_rate / self.full_rate() * RECOVERY_SECONDS);
            self.at + wait + SignedDuration::from_millis(1)
        })
    }

    /// Refills the bucket and raises the rate for the time that has passed.
    pub(super) fn refill(&mut self, now: Timestamp) {
        let passed = self.at.duration_until(now).as_secs_f64().max(0.0);
        self.at = now;
        if self.rate.is_infinite() {
            self.tokens = 0.0;
            return;
        }
        self.tokens = (self.tokens + passed * self.rate).min(burst(self.rate));
        let full_rate = self.full_rate();
        self.rate = (self.rate + passed * full_rate / RECOVERY_SECONDS).min(self.limit);
        if self.rate >= full_rate {
            self.rate = self.limit;
        }
    }

    /// Returns the rate at which a slowdown is over.
    fn full_rate(&self) -> f64 {
        if self.limit.is_finite() {
            self.limit
        } else {
            STS_QUOTA_RATE
        }
    }
}

fn burst(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(1.0)
}

/// Counts the calls in the current second and the previous one.
#[derive(Debug, Default)]
struct Meter {
    second: i64,
    calls: u32,
    before: u32,
}

impl Meter {
    fn count(&mut self, now: Timestamp) {
        self.turn(now);
        self.calls = self.calls.saturating_add(1);
    }

    fn rate(&mut self, now: Timestamp) -> f64 {
        self.turn(now);
        f64::from(self.calls.max(self.before))
    }

    fn turn(&mut self, now: Timestamp) {
        let second = now.as_second();
        if second != self.second {
            self.before = if second == self.second + 1 {
                self.calls
            } else {
                0
            };
            self.calls = 0;
            self.second = second;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millisecond).unwrap()
    }

    /// Returns the number of calls in `milliseconds` by a caller who calls whenever allowed.
    fn calls(limiter: &mut AdaptiveRateLimiter, milliseconds: std::ops::Range<i64>) -> u32 {
        let mut calls = 0;
        for millisecond in milliseconds {
            while limiter.ready(at(millisecond)).is_ok() && calls < 100_000 {
                limiter.spend(at(millisecond));
                calls += 1;
            }
        }
        calls
    }

    #[test]
    fn a_limit_is_kept_from_the_first_second_on() {
        let mut limiter = AdaptiveRateLimiter::new(200);
        assert!((200..=221).contains(&calls(&mut limiter, 0..1000)));
        assert!((199..=201).contains(&calls(&mut limiter, 1000..2000)));
        assert_eq!(AdaptiveRateLimiter::new(0).rate(), None);
        assert_eq!(AdaptiveRateLimiter::new(0).ready(at(0)), Ok(()));
    }

    #[test]
    fn throttling_halves_once_and_the_rate_grows_back() {
        let mut limiter = AdaptiveRateLimiter::new(200);
        calls(&mut limiter, 0..2000);
        for _ in 0..64 {
            limiter.throttled(at(2000));
        }
        assert_eq!(limiter.rate(), Some(100.0));
        let slow = calls(&mut limiter, 2000..3000);
        assert!((90..=125).contains(&slow), "{slow}");
        let mut rates = Vec::new();
        for second in 3..40 {
            let _ = limiter.ready(at(second * 1000));
            rates.push(limiter.rate().unwrap());
        }
        assert!(rates.is_sorted(), "{rates:?}");
        assert_eq!(rates.last(), Some(&200.0));
    }

    #[test]
    fn the_rate_never_falls_below_its_floor() {
        let mut limiter = AdaptiveRateLimiter::new(200);
        for second in 0..20 {
            limiter.throttled(at(second * 1001));
            assert!(limiter.rate().unwrap() >= MIN_RATE);
        }
        assert!(limiter.rate().unwrap() < 20.0);
        let mut slowest = AdaptiveRateLimiter::new(1);
        slowest.throttled(at(0));
        assert_eq!(slowest.rate(), Some(1.0));
    }

    #[test]
    fn without_a_limit_throttling_makes_one_for_a_while() {
        let mut limiter = AdaptiveRateLimiter::new(0);
        for _ in 0..300 {
            assert!(limiter.ready(at(0)).is_ok());
            limiter.spend(at(0));
        }
        limiter.throttled(at(500));
        assert_eq!(limiter.rate(), Some(150.0));
        assert!(limiter.ready(at(500)).is_err());
        assert!(limiter.ready(at(40_000)).is_ok());
        assert_eq!(limiter.rate(), None);
    }

    #[test]
    fn the_wait_is_as_long_as_the_next_call_takes_to_come() {
        let mut limiter = AdaptiveRateLimiter::new(10);
        let _ = limiter.ready(at(0));
        limiter.spend(at(0));
        assert_eq!(limiter.ready(at(0)), Err(SignedDuration::from_millis(100)));
        assert_eq!(limiter.ready(at(50)), Err(SignedDuration::from_millis(50)));
        assert_eq!(limiter.ready(at(100)), Ok(()));
    }

    #[test]
    fn burst_is_a_tenth_of_a_second_and_at_least_one_call() {
        for (most, at_once) in [(200, 20), (50, 5), (5, 1), (1, 1)] {
            assert_eq!(
                calls(&mut AdaptiveRateLimiter::new(most), 0..1),
                at_once,
                "{most}"
            );
        }
    }

    #[test]
    fn the_rate_recovers_exactly_at_the_predicted_time() {
        let mut limiter = AdaptiveRateLimiter::new(200);
        assert_eq!(limiter.recovered_at(), None);
        calls(&mut limiter, 0..2000);
        limiter.throttled(at(2000));
        // Half is missing, which takes half of the 30 s.
        let due = limiter.recovered_at().unwrap();
        assert_eq!(due, at(2000 + 15_000 + 1));
        limiter.refill(at(10_000));
        let again = limiter.recovered_at().unwrap();
        assert!(due.duration_until(again).abs() < SignedDuration::from_millis(1));
        limiter.refill(due - SignedDuration::from_millis(50));
        assert!(limiter.recovered_at().is_some());
        limiter.refill(due);
        assert_eq!(
            (limiter.rate(), limiter.recovered_at()),
            (Some(200.0), None)
        );

        let mut unlimited = AdaptiveRateLimiter::new(0);
        assert_eq!(unlimited.recovered_at(), None);
        calls(&mut unlimited, 0..1);
        unlimited.throttled(at(500));
        assert!(unlimited.recovered_at().is_some());
    }

    #[test]
    fn throttling_halves_the_higher_of_two_seconds_rates() {
        // Times of throttling in milliseconds, and the rate after each, starting from 100 calls per
        // second.
        for (throttled, rate) in [
            (900, 50.0),
            (1900, 50.0),
            (2000, MIN_RATE),
            (60_000, MIN_RATE),
        ] {
            let mut limiter = AdaptiveRateLimiter::new(0);
            for _ in 0..100 {
                limiter.spend(at(500));
            }
            limiter.throttled(at(throttled));
            assert_eq!(limiter.rate(), Some(rate), "{throttled}");
        }
        // More calls in this second than in the previous one, and vice versa.
        for (first, second) in [(40, 80), (80, 40)] {
            let mut limiter = AdaptiveRateLimiter::new(0);
            for (calls, when) in [(first, 0), (second, 1000)] {
                for _ in 0..calls {
                    limiter.spend(at(when));
                }
            }
            limiter.throttled(at(1500));
            assert_eq!(limiter.rate(), Some(40.0));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_calls() {
        let mut limiter = AdaptiveRateLimiter::new(10);
        calls(&mut limiter, 3_600_000..3_601_000);
        limiter.throttled(at(3_601_000));
        assert!(calls(&mut limiter, 0..2000) > 5);
    }

    proptest! {
        /// For any pattern of calls: no second exceeds the rate and its burst, and a caller who
        /// waits as long as required may call.
        #[test]
        fn the_rate_is_never_exceeded(
            most in 1..500u32,
            requests in prop::collection::vec((0..400i64, 0..50usize), 1..200),
        ) {
            let mut limiter = AdaptiveRateLimiter::new(most);
            let mut now = at(0);
            let mut made = Vec::new();
            for (pause, calls) in requests {
                now += SignedDuration::from_millis(pause);
                for _ in 0..calls {
                    if let Err(wait) = limiter.ready(now) {
                        now += wait + SignedDuration::from_micros(1);
                    }
                    prop_assert!(limiter.ready(now).is_ok());
                    limiter.spend(now);
                    made.push(now);
                }
            }
            let allowed = f64::from(most) + burst(f64::from(most)) + 1e-6;
            for (place, from) in made.iter().enumerate() {
                let until = *from + SignedDuration::from_secs(1);
                let within = made[place..].iter().take_while(|time| **time < until).count();
                prop_assert!(within as f64 <= allowed, "{within} calls in a second of {most}");
            }
        }
    }
}
