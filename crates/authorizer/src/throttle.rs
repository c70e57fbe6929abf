//! Limits how often a repeated condition is reported.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// A lock-free limiter that allows the first report and then one for each period.
#[derive(Debug, Default)]
pub struct LogThrottle(AtomicI64);

impl Clone for LogThrottle {
    fn clone(&self) -> Self {
        Self(AtomicI64::new(self.0.load(Ordering::Relaxed)))
    }
}

impl LogThrottle {
    /// Returns true if a report is allowed now, and counts it.
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
    fn allows_the_first_report_and_one_per_period() {
        let pace = LogThrottle::default();
        let at = |second| Timestamp::from_second(1_000_000 + second).unwrap();
        let period = Duration::from_secs(10);
        let allowed: Vec<i64> = (0..30)
            .filter(|second| pace.allows(at(*second), period))
            .collect();
        assert_eq!(allowed, [0, 10, 20]);
        // A clock that was set back does not suppress reports.
        assert!(pace.allows(at(-1000), period));
    }
}
