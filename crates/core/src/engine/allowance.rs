//! A bucket of first fetches for each namespace, and the sessions that wait for it. It outlives
//! the sessions, so deleting and creating pods or flipping annotations does not fill it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::line::Ticket;
use crate::session::SessionKey;

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

/// The sessions of a namespace that wait, those that a pod waits for first.
#[derive(Debug)]
struct Waiting {
    keys: BTreeMap<(Prefetch, Ticket), (Arc<SessionKey>, f64)>,
    /// When the first can be paid for.
    due: Timestamp,
}

/// Whether no pod waits for a session: those sort last.
type Prefetch = bool;

#[derive(Debug)]
pub(super) struct Allowances {
    burst: f64,
    /// A second.
    rate: f64,
    buckets: HashMap<Arc<str>, Bucket>,
    waiting: HashMap<Arc<str>, Waiting>,
    dues: BTreeSet<(Timestamp, Arc<str>)>,
    held: usize,
    trimmed: Timestamp,
}

/// How often full buckets are looked for, seconds.
const TRIM: f64 = 60.0;

impl Allowances {
    pub(super) fn new(burst: u32, rate: f64) -> Self {
        Self {
            burst: f64::from(burst.max(1)),
            rate: rate.max(0.01),
            buckets: HashMap::new(),
            waiting: HashMap::new(),
            dues: BTreeSet::new(),
            held: 0,
            trimmed: Timestamp::UNIX_EPOCH,
        }
    }

    /// Pays what a fetch costs; where that is too much, or others of the namespace wait already,
    /// the key is held until [`Self::next_paid`] returns it.
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
        let waiting = self.waiting.entry(namespace.clone());
        let waiting = waiting.or_insert_with(|| Waiting {
            keys: BTreeMap::new(),
            due: now,
        });
        waiting.keys.insert((!urgent, ticket), (key.clone(), cost));
        self.held += 1;
        self.plan(namespace, now);
        false
    }

    /// Takes a key away that is held.
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

    /// Puts a key that is held before those that no pod waits for.
    pub(super) fn hurry(&mut self, namespace: &Arc<str>, ticket: Ticket, now: Timestamp) {
        if let Some(waiting) = self.waiting.get_mut(namespace)
            && let Some(held) = waiting.keys.remove(&(true, ticket))
        {
            waiting.keys.insert((false, ticket), held);
            self.plan(namespace, now);
        }
    }

    /// Takes the next key that a namespace which holds it can pay for by now, and pays. Others may
    /// hold it too.
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

    /// When [`Self::next_paid`] has something.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.dues.first().map(|(due, _)| *due)
    }

    /// The number of places held here: one for each pair of a key and a namespace that holds it.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Says anew when the first that waits can be paid for.
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

    /// Takes what something costs, or tells how long to wait for it.
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
        let cost = cost.min(self.burst);
        if let Some(bucket) = self.buckets.get_mut(namespace) {
            bucket.left -= cost;
        }
        Ok(())
    }

    /// How long until the namespace can pay.
    fn wait(&mut self, namespace: &Arc<str>, cost: f64, now: Timestamp) -> SignedDuration {
        let (burst, rate) = (self.burst, self.rate);
        let bucket = self.buckets.entry(namespace.clone()).or_insert(Bucket {
            left: burst,
            at: now,
        });
        bucket.refill(burst, rate, now);
        // What costs more than a bucket holds takes a whole one.
        let cost = cost.min(burst);
        if bucket.left >= cost {
            return SignedDuration::ZERO;
        }
        // A little longer than none, whatever is lost in rounding.
        SignedDuration::from_secs_f64((cost - bucket.left) / rate)
            .max(SignedDuration::from_millis(1))
    }

    /// Drops buckets that are full again, which are the same as none.
    pub(super) fn trim(&mut self, now: Timestamp) {
        let since = self.trimmed.duration_until(now).as_secs_f64();
        if self.buckets.len() > 64 && !(0.0..TRIM).contains(&since) {
            self.trimmed = now;
            let (burst, rate) = (self.burst, self.rate);
            self.buckets.retain(|_, bucket| {
                bucket.refill(burst, rate, now);
                bucket.left < burst
            });
        }
    }
}

impl Bucket {
    fn refill(&mut self, burst: f64, rate: f64, now: Timestamp) {
        let passed = self.at.duration_until(now).as_secs_f64().max(0.0);
        self.left = (self.left + passed * rate).min(burst);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arn::RoleArn;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn key(name: &str) -> Arc<SessionKey> {
        Arc::new(SessionKey {
            role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{name}")).unwrap(),
            name: "default.default".into(),
            external_id: None,
            duration_seconds: 3600,
            limits: None,
        })
    }

    #[test]
    fn a_namespace_waits_for_what_it_lacks_and_no_longer() {
        for (left, cost, wait) in [
            (0.0, 1.0, 0.5),
            (0.0, 6.0, 3.0),
            (4.0, 6.0, 1.0),
            // More than a bucket holds takes a whole one.
            (0.0, 600.0, 5.0),
            (10.0, 600.0, 0.0),
        ] {
            let namespace: Arc<str> = "shop".into();
            let mut all = Allowances::new(10, 2.0);
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
    fn what_was_spent_stays_spent_and_what_is_full_again_is_not_kept() {
        let mut all = Allowances::new(100, 1.0);
        let spent: Arc<str> = "spent".into();
        // A day before, so that the first look is due.
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
        // The next look is a minute later, however many there are by then.
        for number in 0..100 {
            assert_eq!(all.take(&name(number), 1.0, at(21)), Ok(()));
        }
        all.trim(at(79));
        assert_eq!(all.buckets.len(), 101);
        all.trim(at(80));
        assert_eq!(all.buckets.len(), 1);
    }
}
