//! Per-pod shares of the requests forwarded to the node's metadata service.
//!
//! Token buckets refill evenly. A quarter of the common bucket is open to all pods. The rest is a
//! reserve for pods within their equal share, whatever the other pods request.

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::Peer;

const SECOND: i64 = 1_000_000_000;
/// Interval at which full buckets are removed.
const SWEEP: i64 = SECOND / 4;
/// The fraction (1/n) of the common bucket that is open to pods that exceeded their equal share.
const OPEN_PART: i64 = 4;
/// The fractions (1/n) of the common bucket that one pod, and all pods together, may take from
/// equal shares in one burst.
const SHARE_PARTS: [i64; 2] = [64, 8];
/// The fraction (1/n) of all requests that is in no pod's share, which is left for new pods.
const UNSHARED_PART: i64 = 20;

/// An empty bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// The pod's own.
    Own,
    /// The common one, or its part that is open to pods that exceeded their share.
    All,
}

/// Buckets of all pods with recently forwarded requests. Full buckets are removed, so there are
/// never more entries than requests forwarded in the last seconds.
#[derive(Debug)]
pub(super) struct Forwards {
    /// Requests per second of one pod, which is its burst size too.
    each: i64,
    /// Requests per second of all pods, which is their burst size too.
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

/// A bucket that refills evenly, stored as the time at which it will be full, in nanoseconds.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket {
    full_at: i64,
}

/// The size of a bucket, and the time to refill one token.
#[derive(Debug, Clone, Copy)]
struct Size {
    tokens: i64,
    interval: i64,
}

impl Bucket {
    /// Removes a token. Returns `None` if the bucket contains less than one.
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
        let mut state = self.state.lock();
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
            // The clock was set back, so the stored times are in the future.
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

    /// Sends requests for three seconds: as many as possible by `greedy` pods, and one per `pause`
    /// milliseconds by another pod, starting at `from`.
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
    fn greedy_pods_leave_a_share_to_a_modest_pod() {
        // Slightly more than the share of one of (n + 1) pods at 200 requests per second.
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
        // 200 per second, and the initial burst.
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
            most = most.max(forwards.state.lock().peers.len());
        }
        assert!(most <= 1000, "{most} pods are kept");
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let forwards = Forwards::new(50, 200);
        while forwards.take(&pod(1), at(3_600_000)).is_ok() {}
        while forwards.take(&pod(2), at(3_600_000)).is_ok() {}
        // Requests of the same moment may be out of order.
        assert!(forwards.take(&pod(1), at(3_599_990)).is_err());
        assert!(forwards.take(&pod(1), at(0)).is_ok());
        assert!(forwards.take(&pod(2), at(0)).is_ok());
    }
}
