//! The staleness of a copy of remote state.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Larger than any number of milliseconds by which state can be behind.
const OFFSET: u64 = 1 << 52;

/// The time that a copy of remote state represents. The default is a copy that has not arrived yet.
#[derive(Debug)]
pub struct Staleness {
    origin: Instant,
    /// Milliseconds from `origin` to that time, which may be before `origin`, plus [`OFFSET`].
    /// Zero before the first update.
    of: AtomicU64,
}

impl Default for Staleness {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            of: AtomicU64::new(0),
        }
    }
}

impl Staleness {
    /// Creates the staleness of a copy that represents the current time.
    pub fn from_now() -> Self {
        let staleness = Self::default();
        staleness.update(Duration::ZERO);
        staleness
    }

    /// Records an update, whose source was itself behind by `behind`.
    pub fn update(&self, behind: Duration) {
        self.of
            .store(self.now().saturating_sub(millis(behind)).max(1), Relaxed);
    }

    /// Returns the time that has passed since the time that the copy represents. `None` before the
    /// first update.
    pub fn age(&self) -> Option<Duration> {
        let of = Some(self.of.load(Relaxed)).filter(|of| *of != 0)?;
        Some(Duration::from_millis(self.now().saturating_sub(of)))
    }

    fn now(&self) -> u64 {
        OFFSET.saturating_add(millis(self.origin.elapsed()))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_sources_own_staleness_counts() {
        let staleness = Staleness::from_now();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(staleness.age(), Some(Duration::from_secs(7)));
        staleness.update(Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(staleness.age(), Some(Duration::from_secs(3605)));
        staleness.update(Duration::ZERO);
        assert_eq!(staleness.age(), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_has_not_arrived_has_no_age() {
        let staleness = Staleness::default();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(staleness.age(), None);
        staleness.update(Duration::MAX);
        assert!(staleness.age() > Some(Duration::from_secs(1 << 40)));
    }
}
