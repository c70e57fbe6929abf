//! How many calls a second may be made: a token bucket whose rate is halved where STS asks to slow
//! down, and grows back by a little each second.

use jiff::{SignedDuration, Timestamp};

/// The bucket holds this part of a second's calls, and one at least: in any time, no more calls
/// are made than the rate allows in it, and so many more.
const BURST: f64 = 0.1;
/// Never slower than this, calls a second, unless the limit is.
const FLOOR: f64 = 5.0;
/// Where there is no limit, the rate at which one that came by throttling is lifted again: STS's
/// quota for an account and Region, calls a second.
const QUOTA: f64 = 600.0;
/// The seconds that the rate needs to grow from nothing to all.
const RECOVERY: f64 = 30.0;
/// Calls in flight are throttled together; what comes in this time of a slowdown belongs to it.
const TOGETHER: f64 = 1.0;

#[derive(Debug)]
pub(super) struct Pace {
    /// Infinite where there is no limit.
    most: f64,
    /// The rate now.
    rate: f64,
    left: f64,
    at: Timestamp,
    slowed: Option<Timestamp>,
    calls: Meter,
}

impl Pace {
    /// `most` calls a second, 0 for no limit.
    pub(super) fn new(most: u32) -> Self {
        let most = match most {
            0 => f64::INFINITY,
            most => f64::from(most),
        };
        Self {
            most,
            rate: most,
            left: burst(most),
            at: Timestamp::UNIX_EPOCH,
            slowed: None,
            calls: Meter::default(),
        }
    }

    /// Whether a call may be made now, or how long to wait for it.
    pub(super) fn ready(&mut self, now: Timestamp) -> Result<(), SignedDuration> {
        self.refill(now);
        if self.rate.is_infinite() || self.left >= 1.0 {
            return Ok(());
        }
        let wait = SignedDuration::from_secs_f64((1.0 - self.left) / self.rate);
        Err(wait.max(SignedDuration::from_millis(1)))
    }

    /// Counts a call.
    pub(super) fn spend(&mut self, now: Timestamp) {
        self.left -= 1.0;
        self.calls.count(now);
    }

    /// STS asks to slow down: to half of what is being called, which may be less than the limit.
    pub(super) fn throttled(&mut self, now: Timestamp) {
        self.refill(now);
        let same =
            |slowed: Timestamp| (0.0..TOGETHER).contains(&slowed.duration_until(now).as_secs_f64());
        if self.slowed.is_some_and(same) {
            return;
        }
        self.slowed = Some(now);
        let calling = self.calls.a_second(now).min(self.rate).min(self.whole());
        self.rate = (calling / 2.0).max(FLOOR.min(self.most));
        self.left = self.left.min(0.0);
    }

    /// Calls a second that may be made now; `None` for no limit.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.is_finite().then_some(self.rate)
    }

    /// When the rate is all that it may be; `None` where it is.
    pub(super) fn recovered_at(&self) -> Option<Timestamp> {
        let missing = self.whole() - self.rate;
        (self.rate < self.most).then(|| {
            let wait = SignedDuration::from_secs_f64(missing / self.whole() * RECOVERY);
            self.at + wait + SignedDuration::from_millis(1)
        })
    }

    /// Takes in that time went by.
    pub(super) fn refill(&mut self, now: Timestamp) {
        let passed = self.at.duration_until(now).as_secs_f64().max(0.0);
        self.at = now;
        if self.rate.is_infinite() {
            self.left = 0.0;
            return;
        }
        self.left = (self.left + passed * self.rate).min(burst(self.rate));
        let whole = self.whole();
        self.rate = (self.rate + passed * whole / RECOVERY).min(self.most);
        if self.rate >= whole {
            self.rate = self.most;
        }
    }

    /// The rate at which a slowdown is over.
    fn whole(&self) -> f64 {
        if self.most.is_finite() {
            self.most
        } else {
            QUOTA
        }
    }
}

fn burst(rate: f64) -> f64 {
    (rate * BURST).max(1.0)
}

/// Calls in the second that runs and in the one before.
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

    fn a_second(&mut self, now: Timestamp) -> f64 {
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

    /// Calls made in `milliseconds` by someone who calls whenever he may.
    fn calls(pace: &mut Pace, milliseconds: std::ops::Range<i64>) -> u32 {
        let mut calls = 0;
        for millisecond in milliseconds {
            while pace.ready(at(millisecond)).is_ok() && calls < 100_000 {
                pace.spend(at(millisecond));
                calls += 1;
            }
        }
        calls
    }

    #[test]
    fn a_limit_is_kept_from_the_first_second_on() {
        let mut pace = Pace::new(200);
        assert!((200..=221).contains(&calls(&mut pace, 0..1000)));
        assert!((199..=201).contains(&calls(&mut pace, 1000..2000)));
        assert_eq!(Pace::new(0).rate(), None);
        assert_eq!(Pace::new(0).ready(at(0)), Ok(()));
    }

    #[test]
    fn throttling_halves_once_and_the_rate_grows_back() {
        let mut pace = Pace::new(200);
        calls(&mut pace, 0..2000);
        for _ in 0..64 {
            pace.throttled(at(2000));
        }
        assert_eq!(pace.rate(), Some(100.0));
        let slow = calls(&mut pace, 2000..3000);
        assert!((90..=125).contains(&slow), "{slow}");
        let mut rates = Vec::new();
        for second in 3..40 {
            let _ = pace.ready(at(second * 1000));
            rates.push(pace.rate().unwrap());
        }
        assert!(rates.is_sorted(), "{rates:?}");
        assert_eq!(rates.last(), Some(&200.0));
    }

    #[test]
    fn the_rate_never_falls_below_its_floor() {
        let mut pace = Pace::new(200);
        for second in 0..20 {
            pace.throttled(at(second * 1001));
            assert!(pace.rate().unwrap() >= FLOOR);
        }
        assert!(pace.rate().unwrap() < 20.0);
        let mut slowest = Pace::new(1);
        slowest.throttled(at(0));
        assert_eq!(slowest.rate(), Some(1.0));
    }

    #[test]
    fn without_a_limit_throttling_makes_one_for_a_while() {
        let mut pace = Pace::new(0);
        for _ in 0..300 {
            assert!(pace.ready(at(0)).is_ok());
            pace.spend(at(0));
        }
        pace.throttled(at(500));
        assert_eq!(pace.rate(), Some(150.0));
        assert!(pace.ready(at(500)).is_err());
        assert!(pace.ready(at(40_000)).is_ok());
        assert_eq!(pace.rate(), None);
    }

    #[test]
    fn the_wait_is_as_long_as_the_next_call_takes_to_come() {
        let mut pace = Pace::new(10);
        let _ = pace.ready(at(0));
        pace.spend(at(0));
        assert_eq!(pace.ready(at(0)), Err(SignedDuration::from_millis(100)));
        assert_eq!(pace.ready(at(50)), Err(SignedDuration::from_millis(50)));
        assert_eq!(pace.ready(at(100)), Ok(()));
    }

    #[test]
    fn a_tenth_of_a_second_s_calls_may_be_made_at_once_and_one_at_least() {
        for (most, at_once) in [(200, 20), (50, 5), (5, 1), (1, 1)] {
            assert_eq!(calls(&mut Pace::new(most), 0..1), at_once, "{most}");
        }
    }

    #[test]
    fn the_rate_is_whole_again_when_it_says_so_and_not_before() {
        let mut pace = Pace::new(200);
        assert_eq!(pace.recovered_at(), None);
        calls(&mut pace, 0..2000);
        pace.throttled(at(2000));
        // Half of it is missing, which takes half of the 30 s.
        let due = pace.recovered_at().unwrap();
        assert_eq!(due, at(2000 + 15_000 + 1));
        pace.refill(at(10_000));
        let again = pace.recovered_at().unwrap();
        assert!(due.duration_until(again).abs() < SignedDuration::from_millis(1));
        pace.refill(due - SignedDuration::from_millis(50));
        assert!(pace.recovered_at().is_some());
        pace.refill(due);
        assert_eq!((pace.rate(), pace.recovered_at()), (Some(200.0), None));

        let mut unlimited = Pace::new(0);
        assert_eq!(unlimited.recovered_at(), None);
        calls(&mut unlimited, 0..1);
        unlimited.throttled(at(500));
        assert!(unlimited.recovered_at().is_some());
    }

    #[test]
    fn half_of_what_was_called_in_this_second_or_the_one_before_counts() {
        // Times of throttling in milliseconds, and the rate after each, starting from 100 calls a
        // second.
        for (throttled, rate) in [(900, 50.0), (1900, 50.0), (2000, FLOOR), (60_000, FLOOR)] {
            let mut pace = Pace::new(0);
            for _ in 0..100 {
                pace.spend(at(500));
            }
            pace.throttled(at(throttled));
            assert_eq!(pace.rate(), Some(rate), "{throttled}");
        }
        // More calls in this second than in the previous one, and vice versa.
        for (first, second) in [(40, 80), (80, 40)] {
            let mut pace = Pace::new(0);
            for (calls, when) in [(first, 0), (second, 1000)] {
                for _ in 0..calls {
                    pace.spend(at(when));
                }
            }
            pace.throttled(at(1500));
            assert_eq!(pace.rate(), Some(40.0));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_calls() {
        let mut pace = Pace::new(10);
        calls(&mut pace, 3_600_000..3_601_000);
        pace.throttled(at(3_601_000));
        assert!(calls(&mut pace, 0..2000) > 5);
    }

    proptest! {
        /// Whenever calls are wished for: no second has more than the rate and its burst, and
        /// whoever waits as long as he is told may call.
        #[test]
        fn the_rate_is_never_exceeded(
            most in 1..500u32,
            wishes in prop::collection::vec((0..400i64, 0..50usize), 1..200),
        ) {
            let mut pace = Pace::new(most);
            let mut now = at(0);
            let mut made = Vec::new();
            for (pause, calls) in wishes {
                now += SignedDuration::from_millis(pause);
                for _ in 0..calls {
                    if let Err(wait) = pace.ready(now) {
                        now += wait + SignedDuration::from_micros(1);
                    }
                    prop_assert!(pace.ready(now).is_ok());
                    pace.spend(now);
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
