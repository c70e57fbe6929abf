//! The shares of pods in the requests that are forwarded to the node's metadata service.
//!
//! Buckets refill evenly. A quarter of the common bucket is open to all, the rest is a reserve for
//! pods that took little: a pod that is within its equal share of all may take from it, however
//! much others ask for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::Peer;

const SECOND: i64 = 1_000_000_000;
/// The interval at which pods whose buckets are full again are forgotten.
const SWEEP: i64 = SECOND / 4;
/// The fraction (1/n) of the common bucket open to pods that exceeded their equal share.
const OPEN_PART: i64 = 4;
/// The fractions (1/n) of the common bucket that one pod, and all pods together, may take at once
/// from equal shares.
const SHARE_PARTS: [i64; 2] = [64, 8];
/// The fraction (1/n) of all requests that is in no pod's share, and is left for newcomers.
const UNSHARED_PART: i64 = 20;

/// A bucket that was empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// The pod's own.
    Own,
    /// The common one, or the part of it that is open to a pod which took more than others.
    All,
}

/// Buckets of all pods that recently had a request forwarded. Pods whose buckets are full are not
/// kept: there are never more entries than requests forwarded in the last seconds.
#[derive(Debug)]
pub(super) struct Forwards {
    /// Requests a second of one pod, and what it may take at once.
    each: i64,
    /// The same of all pods.
    all: i64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Bucket,
    peers: HashMap<Peer, PeerBuckets>,
    swept: i64,
}

#[derive(Debug, Default, Clone, Copy)]
struct PeerBuckets {
    own: Bucket,
    share: Bucket,
}

/// A bucket that refills evenly, as the time at which it is full again, in nanoseconds.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket {
    full_at: i64,
}

/// The size of a bucket, and the time in which one token comes back.
#[derive(Debug, Clone, Copy)]
struct Size {
    tokens: i64,
    interval: i64,
}

impl Bucket {
    /// The bucket with a token less; `None` where fewer than one of the `size` is left.
    fn without_one(self, size: Size, now: i64) -> Option<Self> {
        let latest = now.saturating_add(size.tokens.saturating_mul(size.interval));
        let full_at = self.full_at.max(now).saturating_add(size.interval);
        (full_at <= latest).then_some(Self { full_at })
    }
}

impl Forwards {
    pub(super) fn new(each: u32, all: u32) -> Self {
        Self {
            each: i64::from(each).max(1),
            all: i64::from(all).max(1),
            state: Mutex::default(),
        }
    }

    /// Takes a token for `peer`.
    pub(super) fn take(&self, peer: &Peer, now: Timestamp) -> Result<(), Exhausted> {
        let now = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sweep(now);
        let before = state.peers.get(peer).copied();
        let peers = state.peers.len() + usize::from(before.is_none());
        let before = before.unwrap_or_default();

        let own = Size {
            tokens: self.each,
            interval: (SECOND / self.each).max(1),
        };
        let own = before.own.without_one(own, now).ok_or(Exhausted::Own)?;
        let interval = (SECOND / self.all).max(1);
        let peers = i64::try_from(peers).unwrap_or(i64::MAX);
        let [of_one, of_all] = SHARE_PARTS.map(|part| self.all / part);
        let turn = interval.saturating_mul(peers);
        let share = Size {
            tokens: of_one.min(of_all / peers).max(1),
            interval: turn.saturating_add(turn / (UNSHARED_PART - 1)),
        };
        let share = before.share.without_one(share, now);
        let open = match share {
            Some(_) => self.all,
            None => (self.all / OPEN_PART).max(1),
        };
        let all = Size {
            tokens: open,
            interval,
        };
        state.all = state.all.without_one(all, now).ok_or(Exhausted::All)?;
        let share = share.unwrap_or(before.share);
        state.peers.insert(peer.clone(), PeerBuckets { own, share });
        Ok(())
    }
}

impl State {
    fn sweep(&mut self, now: i64) {
        let since = now.saturating_sub(self.swept);
        if since < -SECOND {
            // The clock was set back: what is known is of a time that has yet to come.
            *self = Self::default();
        } else if since < SWEEP {
            return;
        }
        self.swept = now;
        self.peers
            .retain(|_, buckets| buckets.own.full_at.max(buckets.share.full_at) > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + milliseconds).unwrap()
    }

    fn pod(n: usize) -> Peer {
        Peer::Pod(format!("pod-{n}").into())
    }

    #[test]
    fn a_bucket_refills_evenly_and_not_with_the_second() {
        let forwards = Forwards::new(50, 200);
        let taken = |ms| {
            (0..500)
                .filter(|_| forwards.take(&pod(1), at(ms)).is_ok())
                .count()
        };
        assert_eq!(taken(990), 50);
        assert_eq!(taken(1000), 0);
        assert_eq!(taken(1100), 5);
        assert_eq!(taken(1200), 5);
        assert_eq!(taken(9000), 50);
        assert_eq!(forwards.take(&pod(1), at(9000)), Err(Exhausted::Own));
    }

    /// Requests in three seconds: by `greedy` pods as many as they can, by one more pod one in
    /// each `pause` milliseconds from the time `from`.
    fn refused(greedy: usize, pause: i64, from: i64) -> (usize, usize) {
        let forwards = Forwards::new(50, 200);
        let (mut asked, mut refused) = (0, 0);
        for ms in 0..3000 {
            for n in 0..greedy {
                while forwards.take(&pod(n), at(ms)).is_ok() {}
            }
            if ms >= from && (ms - from) % pause == 0 {
                asked += 1;
                refused += usize::from(forwards.take(&pod(greedy), at(ms)).is_err());
            }
        }
        (asked, refused)
    }

    #[test]
    fn pods_that_take_all_they_can_leave_a_share_to_one_that_takes_little() {
        // A little more than with n others an (n + 1)th of 200 a second.
        for (greedy, pause) in [(1, 21), (4, 27), (9, 53), (31, 170), (109, 580)] {
            for from in [0, 1, 700, 1500] {
                let (asked, refused) = refused(greedy, pause, from);
                assert!(asked > 0);
                assert_eq!(refused, 0, "{greedy} greedy pods, from {from} ms");
            }
        }
    }

    #[test]
    fn what_nobody_else_takes_is_for_those_who_ask() {
        let forwards = Forwards::new(50, 200);
        let mut served = 0;
        for ms in 0..10_000 {
            for n in 0..4 {
                served += usize::from(forwards.take(&pod(n), at(ms)).is_ok());
            }
        }
        // 200 a second, and what was there at the start.
        assert!((2000..=2200).contains(&served), "{served}");
    }

    #[test]
    fn all_together_never_exceed_the_limit() {
        let forwards = Forwards::new(50, 200);
        let mut served = 0;
        for ms in 0..5000 {
            for n in 0..300 {
                served += usize::from(forwards.take(&pod(n), at(ms)).is_ok());
            }
        }
        assert!(served <= 200 + 5 * 200, "{served}");
    }

    #[test]
    fn what_is_kept_of_pods_that_left_is_bounded() {
        let forwards = Forwards::new(50, 200);
        let mut most = 0;
        for n in 0..100_000 {
            let _ = forwards.take(&pod(n), at(i64::try_from(n / 10).unwrap()));
            most = most.max(forwards.state.lock().unwrap().peers.len());
        }
        assert!(most <= 1000, "{most} pods are kept");
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let forwards = Forwards::new(50, 200);
        while forwards.take(&pod(1), at(3_600_000)).is_ok() {}
        while forwards.take(&pod(2), at(3_600_000)).is_ok() {}
        // Requests of one moment may come out of order.
        assert!(forwards.take(&pod(1), at(3_599_990)).is_err());
        assert!(forwards.take(&pod(1), at(0)).is_ok());
        assert!(forwards.take(&pod(2), at(0)).is_ok());
    }
}
