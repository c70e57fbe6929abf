//! The number of waiting pods, shared fairly among namespaces: a tenant that creates many pods of new
//! service accounts must not take the wait from others.

use std::sync::Arc;

use rolegate_runtime::keyed_limit::{KeyedLimiter, Permit};

/// Maximum number of pods that wait at a time. Others are answered at once.
pub(super) const MAX_WAITING: usize = 256;
/// Maximum number of waiting pods of one namespace.
pub(super) const MAX_WAITING_OF_NAMESPACE: usize = 128;

/// The waiting pods.
#[derive(Debug)]
pub(super) struct WaitingPods {
    all: KeyedLimiter<()>,
    by_namespace: KeyedLimiter<Arc<str>>,
}

/// Counts one waiting pod until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _in_all: Permit<()>,
    _in_namespace: Permit<Arc<str>>,
}

impl Default for WaitingPods {
    fn default() -> Self {
        Self {
            all: KeyedLimiter::new(MAX_WAITING),
            by_namespace: KeyedLimiter::new(MAX_WAITING_OF_NAMESPACE),
        }
    }
}

impl WaitingPods {
    /// Takes a place for a pod. `None` if too many wait.
    pub(super) fn enter(&self, namespace: &str) -> Option<Place> {
        Some(Place {
            _in_namespace: self.by_namespace.take(namespace.into())?,
            _in_all: self.all.take(())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_leaves_places_to_others() {
        let pods = WaitingPods::default();
        let mut held: Vec<_> = (0..200).filter_map(|_| pods.enter("greedy")).collect();
        assert_eq!(held.len(), MAX_WAITING_OF_NAMESPACE);
        for number in 0..MAX_WAITING {
            held.extend(pods.enter(&number.to_string()));
        }
        assert_eq!(held.len(), MAX_WAITING);
        drop(held);
        assert!(pods.all.is_empty() && pods.by_namespace.is_empty());
    }
}
