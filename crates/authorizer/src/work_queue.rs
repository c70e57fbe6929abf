//! The queue of pods whose decision may be outdated.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// The reason to decide for a pod. Reasons are ordered: deciding for one of them also does what the
/// earlier variants require.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A consumer of decisions is new and lacks the pod.
    Missing,
    /// The decision may have changed, for all consumers.
    Changed,
    /// Like `Changed`, and a role that STS refused is worth a retry.
    Retry,
}

/// A round-robin queue of UIDs. Each pod is reached, however often all are queued again.
#[derive(Debug, Default)]
pub struct WorkQueue {
    uids: BTreeMap<Arc<str>, Reason>,
    /// The UID that was taken last. The next one after it is first.
    last: Arc<str>,
}

impl WorkQueue {
    /// Queues a pod by its UID.
    pub fn add(&mut self, uid: Arc<str>, reason: Reason) {
        let known = self.uids.entry(uid).or_insert(reason);
        *known = reason.max(*known);
    }

    /// Removes and returns the next pod.
    pub fn take(&mut self) -> Option<(Arc<str>, Reason)> {
        let rest = (Excluded(self.last.clone()), Unbounded);
        let next = self.uids.range(rest).next();
        let (uid, _) = next.or_else(|| self.uids.first_key_value())?;
        self.last = uid.clone();
        self.uids.remove_entry(&self.last)
    }

    /// Returns true if no pod is queued.
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_reason_is_kept() {
        let reasons = [Reason::Missing, Reason::Changed, Reason::Retry];
        for first in reasons {
            for second in reasons {
                let mut queue = WorkQueue::default();
                queue.add("a".into(), first);
                queue.add("a".into(), second);
                assert!(!queue.is_empty());
                assert_eq!(queue.take(), Some(("a".into(), first.max(second))));
                assert!(queue.is_empty() && queue.take().is_none());
            }
        }
    }

    #[test]
    fn each_pod_is_reached_though_others_are_queued_again() {
        let mut queue = WorkQueue::default();
        for uid in ["a", "b", "c"] {
            queue.add(uid.into(), Reason::Changed);
        }
        for uid in ["a", "b", "c", "a", "b"] {
            let (taken, _) = queue.take().unwrap();
            assert_eq!(&*taken, uid);
            queue.add(taken, Reason::Changed);
        }
    }
}
