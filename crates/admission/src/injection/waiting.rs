//! The number of waiting pods, shared fairly among namespaces: a tenant that creates many pods of new
//! service accounts must not take the wait from others.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Maximum number of pods that wait at a time. Others are answered at once.
pub(super) const MAX_WAITING: usize = 256;
/// Maximum number of waiting pods of one namespace.
pub(super) const MAX_WAITING_OF_NAMESPACE: usize = 128;

/// The waiting pods.
#[derive(Debug, Default)]
pub(super) struct WaitingPods(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_namespace: HashMap<Arc<str>, usize>,
}

/// Counts one waiting pod until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pods: &'a WaitingPods,
    namespace: Arc<str>,
}

impl WaitingPods {
    /// Takes a place for a pod. `None` if too many wait.
    pub(super) fn enter(&self, namespace: &str) -> Option<Place<'_>> {
        let mut counts = self.0.lock();
        let own = counts.by_namespace.get(namespace).copied().unwrap_or(0);
        if counts.total >= MAX_WAITING || own >= MAX_WAITING_OF_NAMESPACE {
            return None;
        }
        let namespace: Arc<str> = namespace.into();
        counts.total += 1;
        counts.by_namespace.insert(namespace.clone(), own + 1);
        Some(Place {
            pods: self,
            namespace,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.pods.0.lock();
        counts.total -= 1;
        if let Some(own) = counts.by_namespace.get_mut(&self.namespace) {
            *own -= 1;
            if *own == 0 {
                counts.by_namespace.remove(&self.namespace);
            }
        }
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
        let counts = pods.0.lock();
        assert!(counts.total == 0 && counts.by_namespace.is_empty());
    }
}
