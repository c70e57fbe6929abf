//! The queue of pods to decide.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// The reason to decide for a pod. Later variants include the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// A new subscription lacks the pod.
    Begun,
    /// The decision may have changed, for all subscriptions.
    Changed,
    /// Like `Changed`, and a role that STS refused is worth a retry.
    Retry,
}

/// A round-robin queue of UIDs. Each pod is reached, however often all are queued again.
#[derive(Debug, Default)]
pub(super) struct Pending {
    uids: BTreeMap<Arc<str>, Reason>,
    /// The UID that was taken last. The next one after it is first.
    last: Arc<str>,
}

impl Pending {
    /// Queues a pod.
    pub(super) fn touch(&mut self, uid: Arc<str>, reason: Reason) {
        let known = self.uids.entry(uid).or_insert(reason);
        *known = reason.max(*known);
    }

    /// Takes the next pod.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, Reason)> {
        let rest = (Excluded(self.last.clone()), Unbounded);
        let next = self.uids.range(rest).next();
        let (uid, _) = next.or_else(|| self.uids.first_key_value())?;
        self.last = uid.clone();
        self.uids.remove_entry(&self.last)
    }

    /// Returns `true` if the queue is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_covers_the_others_counts() {
        let reasons = [Reason::Begun, Reason::Changed, Reason::Retry];
        for first in reasons {
            for second in reasons {
                let mut pending = Pending::default();
                pending.touch("a".into(), first);
                pending.touch("a".into(), second);
                assert!(!pending.is_empty());
                assert_eq!(pending.take(), Some(("a".into(), first.max(second))));
                assert!(pending.is_empty() && pending.take().is_none());
            }
        }
    }

    #[test]
    fn each_has_its_turn_though_others_are_touched_again() {
        let mut pending = Pending::default();
        for uid in ["a", "b", "c"] {
            pending.touch(uid.into(), Reason::Changed);
        }
        for uid in ["a", "b", "c", "a", "b"] {
            let (taken, _) = pending.take().unwrap();
            assert_eq!(&*taken, uid);
            pending.touch(taken, Reason::Changed);
        }
    }
}
