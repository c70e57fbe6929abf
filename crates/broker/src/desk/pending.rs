//! Pods that are still to be decided.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// Why a pod is to be decided, the reason that covers the others last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Streams that have just begun lack it.
    Begun,
    /// What was decided may have changed, for all streams.
    Changed,
    /// The same, and what STS refused it is worth another try.
    Retry,
}

/// A round of UIDs: each is reached, however often all are touched meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pending {
    uids: BTreeMap<Arc<str>, Reason>,
    /// The last one taken: what comes after it goes first.
    last: Arc<str>,
}

impl Pending {
    /// A pod is to be decided.
    pub(super) fn touch(&mut self, uid: Arc<str>, reason: Reason) {
        let known = self.uids.entry(uid).or_insert(reason);
        *known = reason.max(*known);
    }

    /// The next one.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, Reason)> {
        let rest = (Excluded(self.last.clone()), Unbounded);
        let next = self.uids.range(rest).next();
        let (uid, _) = next.or_else(|| self.uids.first_key_value())?;
        self.last = uid.clone();
        self.uids.remove_entry(&self.last)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }
}
