//! The handle of readers on the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use rolegate_core::needs::Needs;
use tokio::sync::watch;

use crate::snapshot::Snapshot;

/// The current rules. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct RuleStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// The snapshot's generation, stored separately so that reading it costs a single load.
    generation: AtomicU64,
    /// The time of the last change, in Unix milliseconds.
    changed_at: AtomicI64,
    changes: watch::Sender<u64>,
    needs: watch::Sender<Option<Needs>>,
}

impl Default for RuleStore {
    fn default() -> Self {
        Self(Arc::new(Shared {
            snapshot: ArcSwap::default(),
            generation: AtomicU64::new(0),
            changed_at: AtomicI64::new(Timestamp::now().as_millisecond()),
            changes: watch::Sender::new(0),
            needs: watch::Sender::new(None),
        }))
    }
}

impl RuleStore {
    /// Returns the current snapshot.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// Returns the generation of the rules. Decisions of an earlier one are outdated. A snapshot
    /// loaded after this call has this generation or a later one.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Returns the time of the last change.
    pub fn changed_at(&self) -> Timestamp {
        let millis = self.0.changed_at.load(Ordering::Relaxed);
        Timestamp::from_millisecond(millis).unwrap_or_default()
    }

    /// Subscribes to changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Subscribes to the labels and annotations that rules read; `None` while enabled rules are not
    /// loaded.
    pub fn needs(&self) -> watch::Receiver<Option<Needs>> {
        self.0.needs.subscribe()
    }

    pub(crate) fn publish(&self, snapshot: Snapshot, needs: Option<Needs>) {
        self.0.needs.send_if_modified(|known| {
            // Known needs are kept while rules are reloaded.
            let changed = needs.is_some() && *known != needs;
            if changed {
                *known = needs;
            }
            changed
        });
        let generation = snapshot.rules.generation;
        let now = Timestamp::now().as_millisecond();
        self.0.changed_at.store(now, Ordering::Relaxed);
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.generation.store(generation, Ordering::Release);
        self.0.changes.send_replace(generation);
    }
}
