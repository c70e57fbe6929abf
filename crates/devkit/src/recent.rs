//! Bounded storage that the stand-ins share.

use std::collections::VecDeque;

use parking_lot::{Mutex, MutexGuard};

/// Maximum number of items in a [`Recent`], since a demo may run for days.
const MAX_ITEMS: usize = 10_000;

/// The last items of an endless list. Older ones are dropped.
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
    /// Adds an item, and returns the one that it replaces.
    pub(crate) fn push(&mut self, item: T) -> Option<T> {
        self.items.push_back(item);
        (self.items.len() > MAX_ITEMS)
            .then(|| self.items.pop_front())
            .flatten()
    }

    /// Iterates from oldest to newest.
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

/// Locks even after another holder has panicked, so that a failing test neither hangs nor hides
/// behind a second failure.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_within_bounds() {
        let mut recent = Recent::default();
        let dropped: Vec<_> = (0..MAX_ITEMS + 2).filter_map(|n| recent.push(n)).collect();
        assert_eq!(dropped, [0, 1]);
        assert_eq!(recent.iter().count(), MAX_ITEMS);
        assert_eq!(recent.iter().next_back(), Some(&(MAX_ITEMS + 1)));
    }
}
