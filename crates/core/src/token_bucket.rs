//! A token bucket, as a pure value: the current time is an argument.

use std::time::Duration;

use jiff::Timestamp;

/// The burst and the refill rate of a token bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Maximum number of tokens.
    pub burst: f64,
    /// Tokens added per second.
    pub per_second: f64,
}

/// A point in time of a token bucket.
pub trait Instant: Copy {
    /// Returns the seconds from `self` until `later`; negative if the clock was set back.
    fn seconds_until(self, later: Self) -> f64;
}

impl Instant for Timestamp {
    fn seconds_until(self, later: Self) -> f64 {
        self.duration_until(later).as_secs_f64()
    }
}

/// The time since a fixed origin.
impl Instant for Duration {
    fn seconds_until(self, later: Self) -> f64 {
        later.as_secs_f64() - self.as_secs_f64()
    }
}

/// The tokens that are left of a [`Rate`].
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket<T> {
    tokens: f64,
    at: T,
}

impl<T: Instant> TokenBucket<T> {
    /// Creates a full bucket.
    pub fn full(rate: Rate, now: T) -> Self {
        Self {
            tokens: rate.burst,
            at: now,
        }
    }

    /// Adds the tokens for the time that has passed. A clock that is set back adds none.
    pub fn refill(&mut self, rate: Rate, now: T) {
        let passed = self.at.seconds_until(now).max(0.0);
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at = now;
    }

    /// Takes one token. Returns false if the bucket is empty.
    #[must_use]
    pub fn take(&mut self, rate: Rate, now: T) -> bool {
        self.refill(rate, now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    /// Takes `tokens`, even if fewer are left.
    pub fn charge(&mut self, tokens: f64) {
        self.tokens -= tokens;
    }

    /// Returns the seconds until `tokens` are there; zero if they are.
    pub fn seconds_until(&self, rate: Rate, tokens: f64) -> f64 {
        ((tokens - self.tokens) / rate.per_second).max(0.0)
    }

    /// Returns true if the bucket is full, as it was when it was created.
    pub fn is_full(&self, rate: Rate) -> bool {
        self.tokens >= rate.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3.0,
        per_second: 2.0,
    };

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn taken(bucket: &mut TokenBucket<Duration>, now: Duration) -> usize {
        (0..10).filter(|_| bucket.take(RATE, now)).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = TokenBucket::full(RATE, at(0));
        assert!(bucket.is_full(RATE));
        assert_eq!(taken(&mut bucket, at(0)), 3);
        assert!(!bucket.is_full(RATE));
        assert_eq!(taken(&mut bucket, at(499)), 0);
        assert_eq!(taken(&mut bucket, at(1000)), 2);
        assert_eq!(taken(&mut bucket, at(60_000)), 3);
    }

    #[test]
    fn a_clock_that_is_set_back_adds_nothing() {
        let mut bucket = TokenBucket::full(RATE, at(5000));
        assert_eq!(taken(&mut bucket, at(5000)), 3);
        assert_eq!(taken(&mut bucket, at(0)), 0);
        assert_eq!(taken(&mut bucket, at(500)), 1);
    }

    #[test]
    fn a_debt_is_paid_before_the_next_token() {
        let mut bucket = TokenBucket::full(RATE, at(0));
        bucket.charge(7.0);
        assert!((bucket.seconds_until(RATE, 0.0) - 2.0).abs() < 1e-9);
        assert!((bucket.seconds_until(RATE, 1.0) - 2.5).abs() < 1e-9);
        bucket.refill(RATE, at(10_000));
        assert!(bucket.seconds_until(RATE, 3.0) <= 0.0);
    }
}
