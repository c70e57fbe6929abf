//! How old the picture is that the broker sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When the broker was last heard, and how old its own picture was then. Cheap to clone; all clones
/// are one.
#[derive(Debug, Clone)]
pub(crate) struct BrokerAge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Instant,
    /// Milliseconds from `origin` to the moment that the picture is of. It may lie before `origin`,
    /// so it is kept with an offset.
    of: AtomicU64,
}

/// Longer than any picture is old.
const OFFSET: u64 = 1 << 52;

impl BrokerAge {
    /// Nothing was heard yet: as old as this.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            origin: Instant::now(),
            of: AtomicU64::new(OFFSET),
        }))
    }

    /// The broker said that its picture is of `age` ago.
    pub(crate) fn heard(&self, age_ms: u64) {
        let now = OFFSET.saturating_add(self.elapsed());
        self.0
            .of
            .store(now.saturating_sub(age_ms), Ordering::Relaxed);
    }

    /// How old the picture is now.
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
        let age = BrokerAge::new();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(age.age(), Duration::from_secs(7));
        age.heard(3_600_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(age.age(), Duration::from_secs(3605));
        age.heard(0);
        assert_eq!(age.age(), Duration::ZERO);
    }
}
