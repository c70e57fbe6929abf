//! Delays between failed attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Exponential backoff with jitter. Each delay is random and up to twice its lower bound, so that
/// the processes of a cluster do not retry at once. Lower bounds double until the maximum.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    max: Duration,
    delays: ExponentialBackoff,
}

impl Backoff {
    /// Creates a backoff with delays from `min` to `max`, which is at least twice `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(min)
            // The jitter may double it.
            .with_max_delay(max / 2)
            .without_max_times()
            .with_jitter();
        Self {
            builder,
            max,
            delays: builder.build(),
        }
    }

    /// Returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max)
    }

    /// Starts again with the shortest delay. Call it after a success.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);
    /// Delays are computed in single precision.
    const PRECISION: Duration = Duration::from_micros(10);

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        let check = |backoff: &mut Backoff| {
            for failures in 0..12 {
                let from = (MIN * 2_u32.pow(failures)).min(MAX / 2);
                let delay = backoff.next_delay();
                let range = from - PRECISION..=from * 2 + PRECISION;
                assert!(range.contains(&delay), "{failures}: {delay:?}");
            }
        };
        check(&mut backoff);
        backoff.reset();
        check(&mut backoff);
    }

    #[test]
    fn delays_of_two_processes_differ() {
        let delays = || {
            let mut backoff = Backoff::new(MIN, MAX);
            [(); 10].map(|()| backoff.next_delay())
        };
        assert_ne!(delays(), delays());
    }
}
