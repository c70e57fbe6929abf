//! An injectable clock: the system's in a process, controlled by hand in tests.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

/// Maximum duration of a single sleep on the system's clock. Timers count monotonic time, so a
/// sleep until a wall-clock time wakes up this often to notice that the clock was set or the
/// machine was suspended.
const MAX_SLEEP: Duration = Duration::from_secs(10);

/// A source of wall-clock time. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    Tokio { start: Timestamp, origin: Instant },
    Ahead(watch::Receiver<Duration>),
}

impl Clock {
    /// Returns the system's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Returns a clock that reads `start` now and follows Tokio's time, paused or advanced with it.
    pub fn tokio(start: Timestamp) -> Self {
        Self(Source::Tokio {
            start,
            origin: Instant::now(),
        })
    }

    /// Returns a clock that is ahead of the system's by the duration sent on the channel.
    pub fn ahead() -> (Self, watch::Sender<Duration>) {
        let (hand, by) = watch::channel(Duration::ZERO);
        (Self(Source::Ahead(by)), hand)
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Tokio { start, origin } => start
                .checked_add(origin.elapsed())
                .unwrap_or(Timestamp::MAX),
            Source::Ahead(by) => Timestamp::now()
                .checked_add(*by.borrow())
                .unwrap_or(Timestamp::MAX),
        }
    }

    /// Sleeps until `time` has passed, by this clock or by monotonic time: setting the clock back
    /// does not prolong it.
    pub async fn sleep(&self, time: Duration) {
        let until = self.now().checked_add(time).unwrap_or(Timestamp::MAX);
        let _ = tokio::time::timeout(time, self.sleep_until(until)).await;
    }

    /// Sleeps until [`Clock::now`] is at or after `when`. Returns at once if it already is.
    pub async fn sleep_until(&self, when: Timestamp) {
        while let Ok(left) = Duration::try_from(self.now().duration_until(when))
            && !left.is_zero()
        {
            match &self.0 {
                Source::System => tokio::time::sleep(left.min(MAX_SLEEP)).await,
                // Timers have a resolution of a millisecond: never wake just before the time.
                Source::Tokio { .. } => tokio::time::sleep(left).await,
                Source::Ahead(by) => {
                    let mut by = by.clone();
                    by.mark_unchanged();
                    // The clock may have moved in between, so less is left.
                    let left = Duration::try_from(self.now().duration_until(when));
                    let moved = async {
                        if by.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    let _ = tokio::time::timeout(left.unwrap_or_default(), moved).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_paused_time() {
        let start: Timestamp = "2024-02-29T23:59:00Z".parse().unwrap();
        let clock = Clock::tokio(start);
        assert_eq!(clock.now(), start);
        let copy = clock.clone();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), "2024-03-01T00:59:00Z".parse().unwrap());
        assert_eq!(copy.now(), clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn sleeps_until_a_time_and_not_for_one_past() {
        let clock = Clock::tokio("2024-01-01T00:00:00Z".parse().unwrap());
        let then: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        clock.sleep_until(then).await;
        assert!(clock.now() >= then);
        let after = clock.now();
        clock.sleep_until(then).await;
        assert_eq!(clock.now(), after);
    }

    #[tokio::test(start_paused = true)]
    async fn sleeps_for_a_time() {
        let clock = Clock::tokio("2024-01-01T00:00:00Z".parse().unwrap());
        let then = clock.now() + Duration::from_secs(90);
        clock.sleep(Duration::from_secs(90)).await;
        assert!(clock.now() >= then);
        assert!(clock.now() < then + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn sleepers_wake_when_the_hand_is_moved() {
        let (clock, hand) = Clock::ahead();
        let then = clock.now() + Duration::from_secs(86_400);
        let sleeper = clock.clone();
        let sleeping = tokio::spawn(async move { sleeper.sleep_until(then).await });
        tokio::task::yield_now().await;
        hand.send_replace(Duration::from_secs(3600));
        tokio::task::yield_now().await;
        assert!(!sleeping.is_finished() && clock.now() < then);
        hand.send_replace(Duration::from_secs(90_000));
        sleeping.await.unwrap();
        assert!(clock.now() > then);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_makes_no_sleep_longer() {
        let (clock, hand) = Clock::ahead();
        hand.send_replace(Duration::from_secs(3600));
        let sleeper = clock.clone();
        let start = Instant::now();
        let sleeping = tokio::spawn(async move { sleeper.sleep(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        hand.send_replace(Duration::ZERO);
        sleeping.await.unwrap();
        assert!(start.elapsed() <= Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn the_systems_clock_does_not_end_a_sleep_early() {
        let clock = Clock::system();
        let then = clock.now() + Duration::from_millis(30);
        clock.sleep_until(then).await;
        assert!(clock.now() >= then);
    }
}
