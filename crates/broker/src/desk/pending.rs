//! Pods that are still to be decided again.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// A round of UIDs: each is reached, however often all are touched meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// And whether what STS refused them is worth another try.
    uids: BTreeMap<Arc<str>, bool>,
    /// The last one taken: what comes after it goes first.
    last: Arc<str>,
}

impl Pending {
    /// A pod is to be decided again.
    pub(super) fn touch(&mut self, uid: Arc<str>, retry: bool) {
        *self.uids.entry(uid).or_default() |= retry;
    }

    /// The next one.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, bool)> {
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
