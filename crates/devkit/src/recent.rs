//! What the stand-ins share to remember things within bounds.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many items a [`Recent`] keeps; a demo may stay up for days.
const KEPT: usize = 10_000;

/// The last items of an endless list; older ones are forgotten.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    items: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
        }
    }
}

impl<T> Recent<T> {
    /// Adds an item and returns the one that had to go for it.
    pub(crate) fn push(&mut self, item: T) -> Option<T> {
        self.items.push_back(item);
        (self.items.len() > KEPT)
            .then(|| self.items.pop_front())
            .flatten()
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.items.iter_mut()
    }
}

impl<T: Clone> Recent<T> {
    pub(crate) fn to_vec(&self) -> Vec<T> {
        self.items.iter().cloned().collect()
    }
}

/// Locks even after another holder has panicked: a failing test must not hang or
/// hide behind the failure of a second one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_within_bounds() {
        let mut recent = Recent::default();
        let dropped: Vec<_> = (0..KEPT + 2).filter_map(|n| recent.push(n)).collect();
        assert_eq!(dropped, [0, 1]);
        assert_eq!(recent.iter().count(), KEPT);
        assert_eq!(recent.iter().next_back(), Some(&(KEPT + 1)));
    }
}
