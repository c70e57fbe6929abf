//! The budget of first fetches of each namespace, a token bucket, and the sessions that wait for
//! it. A bucket outlives its sessions, so deleting and creating pods or flipping annotations does
//! not refill it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::queue::Ticket;
use crate::session::SessionKey;
use crate::token_bucket::{Rate, TokenBucket};

/// The waiting sessions of a namespace; those that a pod waits for come first.
#[derive(Debug)]
struct Waiting {
    keys: BTreeMap<(Prefetch, Ticket), (Arc<SessionKey>, f64)>,
    /// The time at which the first one can be paid for.
    due: Timestamp,
}

/// True if no pod waits for the session; these sort last.
type Prefetch = bool;

#[derive(Debug)]
pub(super) struct NamespaceBudgets {
    rate: Rate,
    buckets: HashMap<Arc<str>, TokenBucket<Timestamp>>,
    waiting: HashMap<Arc<str>, Waiting>,
    dues: BTreeSet<(Timestamp, Arc<str>)>,
    held: usize,
    trimmed: Timestamp,
}

/// Interval between searches for full buckets, in seconds.
const TRIM_INTERVAL_SECONDS: f64 = 60.0;

impl NamespaceBudgets {
    pub(super) fn new(burst: u32, rate: f64) -> Self {
        Self {
            rate: Rate {
                burst: f64::from(burst.max(1)),
                per_second: rate.max(0.01),
            },
            buckets: HashMap::new(),
            waiting: HashMap::new(),
            dues: BTreeSet::new(),
            held: 0,
            trimmed: Timestamp::UNIX_EPOCH,
        }
    }

    /// Charges the namespace for a fetch. If the budget does not suffice, or other sessions of the
    /// namespace already wait, the key is held until [`Self::next_paid`] returns it.
    pub(super) fn pay(
        &mut self,
        namespace: &Arc<str>,
        key: &Arc<SessionKey>,
        cost: f64,
        (urgent, ticket): (bool, Ticket),
        now: Timestamp,
    ) -> bool {
        if !self.waiting.contains_key(namespace) && self.take(namespace, cost, now).is_ok() {
            return true;
        }
        let waiting = self
            .waiting
            .entry(namespace.clone())
            .or_insert_with(|| Waiting {
                keys: BTreeMap::new(),
                due: now,
            });
        waiting.keys.insert((!urgent, ticket), (key.clone(), cost));
        self.held += 1;
        self.plan(namespace, now);
        false
    }

    /// Removes a held key.
    pub(super) fn leave(&mut self, namespace: &Arc<str>, (urgent, ticket): (bool, Ticket)) {
        if let Some(waiting) = self.waiting.get_mut(namespace)
            && waiting.keys.remove(&(!urgent, ticket)).is_some()
        {
            self.held -= 1;
            if waiting.keys.is_empty() {
                self.dues.remove(&(waiting.due, namespace.clone()));
                self.waiting.remove(namespace);
            }
        }
    }

    /// Moves a held key ahead of those that no pod waits for.
    pub(super) fn prioritize(&mut self, namespace: &Arc<str>, ticket: Ticket, now: Timestamp) {
        if let Some(waiting) = self.waiting.get_mut(namespace)
            && let Some(held) = waiting.keys.remove(&(true, ticket))
        {
            waiting.keys.insert((false, ticket), held);
            self.plan(namespace, now);
        }
    }

    /// Removes and returns the next key that one of its namespaces can pay for by now, and charges
    /// that namespace. Other namespaces may still hold the key.
    pub(super) fn next_paid(&mut self, now: Timestamp) -> Option<Arc<SessionKey>> {
        while let Some((due, namespace)) = self.dues.first()
            && *due <= now
        {
            let namespace = namespace.clone();
            let first = self.waiting.get(&namespace)?.keys.first_key_value()?;
            let cost = first.1.1;
            if self.take(&namespace, cost, now).is_ok()
                && let Some((_, (key, _))) = self.waiting.get_mut(&namespace)?.keys.pop_first()
            {
                self.held -= 1;
                self.plan(&namespace, now);
                return Some(key);
            }
            self.plan(&namespace, now);
        }
        None
    }

    /// Returns the time at which [`Self::next_paid`] has a key.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.dues.first().map(|(due, _)| *due)
    }

    /// Returns the number of pairs of a key and a namespace that holds it.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Updates the time at which a namespace can pay for its first waiting session.
    fn plan(&mut self, namespace: &Arc<str>, now: Timestamp) {
        let Some(waiting) = self.waiting.get(namespace) else {
            return;
        };
        self.dues.remove(&(waiting.due, namespace.clone()));
        let Some(cost) = waiting.keys.first_key_value().map(|(_, (_, cost))| *cost) else {
            self.waiting.remove(namespace);
            return;
        };
        let due = now + self.wait(namespace, cost, now);
        self.dues.insert((due, namespace.clone()));
        if let Some(waiting) = self.waiting.get_mut(namespace) {
            waiting.due = due;
        }
    }

    /// Charges a cost, or returns the time to wait for it.
    fn take(
        &mut self,
        namespace: &Arc<str>,
        cost: f64,
        now: Timestamp,
    ) -> Result<(), SignedDuration> {
        let wait = self.wait(namespace, cost, now);
        if wait > SignedDuration::ZERO {
            return Err(wait);
        }
        let cost = cost.min(self.rate.burst);
        if let Some(bucket) = self.buckets.get_mut(namespace) {
            bucket.charge(cost);
        }
        Ok(())
    }

    /// Returns the time until the namespace can pay.
    fn wait(&mut self, namespace: &Arc<str>, cost: f64, now: Timestamp) -> SignedDuration {
        let rate = self.rate;
        let bucket = self
            .buckets
            .entry(namespace.clone())
            .or_insert_with(|| TokenBucket::full(rate, now));
        bucket.refill(rate, now);
        // A cost above the capacity takes a whole bucket.
        let wait = bucket.seconds_until(rate, cost.min(rate.burst));
        if wait > 0.0 {
            // Never zero, despite rounding.
            SignedDuration::from_secs_f64(wait).max(SignedDuration::from_millis(1))
        } else {
            SignedDuration::ZERO
        }
    }

    /// Drops full buckets, since a missing bucket counts as full.
    pub(super) fn trim(&mut self, now: Timestamp) {
        let since = self.trimmed.duration_until(now).as_secs_f64();
        if self.buckets.len() > 64 && !(0.0..TRIM_INTERVAL_SECONDS).contains(&since) {
            self.trimmed = now;
            let rate = self.rate;
            self.buckets.retain(|_, bucket| {
                bucket.refill(rate, now);
                !bucket.is_full(rate)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::session_key;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn key(name: &str) -> Arc<SessionKey> {
        Arc::new(session_key(name))
    }

    #[test]
    fn a_namespace_waits_for_what_it_lacks_and_no_longer() {
        for (left, cost, wait) in [
            (0.0, 1.0, 0.5),
            (0.0, 6.0, 3.0),
            (4.0, 6.0, 1.0),
            // A cost above the capacity takes a whole bucket.
            (0.0, 600.0, 5.0),
            (10.0, 600.0, 0.0),
        ] {
            let namespace: Arc<str> = "shop".into();
            let mut all = NamespaceBudgets::new(10, 2.0);
            assert_eq!(all.take(&namespace, 10.0 - left, at(0)), Ok(()));
            let lacking = all.wait(&namespace, cost, at(0)).as_secs_f64();
            assert!((lacking - wait).abs() < 1e-6, "{left} {cost}: {lacking}");
            let paid = all.pay(&namespace, &key("a"), cost, (false, 1), at(0));
            assert_eq!(paid, wait == 0.0);
            if !paid {
                let due = at(0) + SignedDuration::from_secs_f64(wait);
                let early = due - SignedDuration::from_millis(10);
                assert_eq!(all.next_paid(early), None);
                assert_eq!(all.next_paid(due), Some(key("a")));
            }
            assert_eq!((all.held(), all.due()), (0, None));
        }
    }

    #[test]
    fn full_buckets_are_dropped_and_others_kept() {
        let mut all = NamespaceBudgets::new(100, 1.0);
        let spent: Arc<str> = "spent".into();
        // A day earlier, so that the first search is due.
        let name = |number: i32| Arc::<str>::from(format!("ns-{number}"));
        for number in 0..64 {
            assert_eq!(all.take(&name(number), 1.0, at(0)), Ok(()));
        }
        all.trim(at(10));
        assert_eq!(all.buckets.len(), 64, "so few are not worth a look");
        assert_eq!(all.take(&spent, 100.0, at(10)), Ok(()));
        all.trim(at(20));
        assert_eq!(all.buckets.keys().collect::<Vec<_>>(), [&spent]);
        assert!(all.take(&spent, 11.0, at(20)).is_err(), "it has ten");
        assert_eq!(all.take(&spent, 10.0, at(20)), Ok(()));
        // The next search is a minute later, however many buckets there are by then.
        for number in 0..100 {
            assert_eq!(all.take(&name(number), 1.0, at(21)), Ok(()));
        }
        all.trim(at(79));
        assert_eq!(all.buckets.len(), 101);
        all.trim(at(80));
        assert_eq!(all.buckets.len(), 1);
    }
}
