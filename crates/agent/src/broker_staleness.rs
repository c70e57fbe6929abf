//! The staleness of the pod table from the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The time of the broker's last update, and the staleness of the broker's own state at that time.
/// Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub(crate) struct BrokerStaleness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Instant,
    /// Milliseconds from `origin` to the time that the pod table represents. It may be before
    /// `origin`, so it is stored with an offset.
    of: AtomicU64,
}

/// Larger than any staleness.
const OFFSET: u64 = 1 << 52;

impl BrokerStaleness {
    /// Starts without an update: the staleness counts from now.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            origin: Instant::now(),
            of: AtomicU64::new(OFFSET),
        }))
    }

    /// Records that the broker's state is `age` old.
    pub(crate) fn update(&self, age_ms: u64) {
        let now = OFFSET.saturating_add(self.elapsed());
        self.0
            .of
            .store(now.saturating_sub(age_ms), Ordering::Relaxed);
    }

    /// Returns the current staleness of the pod table.
    pub(crate) fn age(&self) -> Duration {
        let now = OFFSET.saturating_add(self.elapsed());
        Duration::from_millis(now.saturating_sub(self.0.of.load(Ordering::Relaxed)))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.0.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_brokers_own_age_counts() {
        let age = BrokerStaleness::new();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(age.age(), Duration::from_secs(7));
        age.update(3_600_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(age.age(), Duration::from_secs(3605));
        age.update(0);
        assert_eq!(age.age(), Duration::ZERO);
    }
}
