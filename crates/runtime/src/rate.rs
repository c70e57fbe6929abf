//! A rate limit for each of many keys, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use rolegate_core::token_bucket::TokenBucket;
use tokio::time::Instant;

/// Maximum number of keys. Above it, keys with a full bucket are dropped first, then any.
const MAX_KEYS: usize = 16 * 1024;

pub use rolegate_core::token_bucket::Rate;

/// The remaining tokens of a [`Rate`], for each key.
#[derive(Debug)]
pub struct KeyedRate<K> {
    rate: Rate,
    origin: Instant,
    /// The times are measured from `origin`.
    buckets: Mutex<HashMap<K, TokenBucket<Duration>>>,
}

impl<K: Eq + Hash + Clone> KeyedRate<K> {
    /// Creates buckets with the same rate for each key.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            origin: Instant::now(),
            buckets: Mutex::default(),
        }
    }

    /// Takes a token of `key`. Returns `false` if none is left.
    pub fn take(&self, key: &K) -> bool {
        self.take_at(key, self.origin.elapsed())
    }

    /// Takes a token of `key` at time `now`, measured from a fixed origin.
    pub fn take_at(&self, key: &K, now: Duration) -> bool {
        self.change(key, now, |bucket| bucket.take(self.rate, now))
    }

    /// Takes `units` tokens of `key`, even if fewer are left, and returns the time to wait before
    /// taking more.
    pub fn charge(&self, key: &K, units: u32) -> Duration {
        self.change(key, self.origin.elapsed(), |bucket| {
            bucket.charge(f64::from(units));
            let wait = bucket.seconds_until(self.rate, 0.0);
            Duration::try_from_secs_f64(wait).unwrap_or(Duration::ZERO)
        })
    }

    fn change<R>(
        &self,
        key: &K,
        now: Duration,
        change: impl FnOnce(&mut TokenBucket<Duration>) -> R,
    ) -> R {
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.get_mut(key) {
            bucket.refill(self.rate, now);
            return change(bucket);
        }
        if buckets.len() >= MAX_KEYS {
            buckets.retain(|_, bucket| {
                bucket.refill(self.rate, now);
                !bucket.is_full(self.rate)
            });
            if buckets.len() >= MAX_KEYS
                && let Some(any) = buckets.keys().next().cloned()
            {
                buckets.remove(&any);
            }
        }
        let mut bucket = TokenBucket::full(self.rate, now);
        let result = change(&mut bucket);
        buckets.insert(key.clone(), bucket);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3.0,
        per_second: 2.0,
    };

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_burst_and_then_its_rate() {
        let rates = KeyedRate::new(RATE);
        let taken = |key| (0..10).filter(|_| rates.take(&key)).count();
        assert_eq!((taken("one"), taken("two")), (3, 3));
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(taken("one"), 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken("one"), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn charges_above_the_rate_return_a_wait() {
        let rates = KeyedRate::new(RATE);
        assert_eq!(rates.charge(&"one", 3), Duration::ZERO);
        assert_eq!(rates.charge(&"one", 4), Duration::from_secs(2));
        assert_eq!(rates.charge(&"two", 1), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(rates.charge(&"one", 1), Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_full_buckets_are_dropped_first() {
        let rates = KeyedRate::new(RATE);
        for key in 0..MAX_KEYS {
            rates.take(&key);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        rates.charge(&0, 9);
        rates.take(&MAX_KEYS);
        assert_eq!(rates.buckets.lock().len(), 2);
        assert!(!rates.take(&0), "a spent key was forgotten");
        for key in 0..2 * MAX_KEYS {
            rates.charge(&key, 9);
        }
        assert_eq!(rates.buckets.lock().len(), MAX_KEYS);
    }
}
