//! How often the same thing is told: at first, then at most once in a while.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// Lets one through at first and then one each period. Lock-free.
#[derive(Debug, Default)]
pub struct Pace(AtomicI64);

impl Clone for Pace {
    fn clone(&self) -> Self {
        Self(AtomicI64::new(self.0.load(Ordering::Relaxed)))
    }
}

impl Pace {
    /// Whether it may be told now, which then counts as told.
    pub fn allows(&self, now: Timestamp, period: Duration) -> bool {
        let now = now.as_millisecond();
        let last = self.0.load(Ordering::Relaxed);
        let period = i64::try_from(period.as_millis()).unwrap_or(i64::MAX);
        let due = last == 0 || now.saturating_sub(last) >= period || now < last;
        due && self
            .0
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_at_first_and_then_each_period() {
        let pace = Pace::default();
        let at = |second| Timestamp::from_second(1_000_000 + second).unwrap();
        let period = Duration::from_secs(10);
        let told: Vec<i64> = (0..30)
            .filter(|second| pace.allows(at(*second), period))
            .collect();
        assert_eq!(told, [0, 10, 20]);
        // A clock that was set back does not silence it.
        assert!(pace.allows(at(-1000), period));
    }
}
