//! The readers' handle on the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use rolegate_core::needs::Needs;
use tokio::sync::watch;

use crate::snapshot::Snapshot;

/// The rules as they are now. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Rules(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// The snapshot's generation, beside it so that asking for it alone costs one load.
    generation: AtomicU64,
    /// The time of the last change, Unix milliseconds.
    changed_at: AtomicI64,
    changes: watch::Sender<u64>,
    needs: watch::Sender<Option<Needs>>,
}

impl Default for Rules {
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

impl Rules {
    /// The snapshot of this moment.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.snapshot.load()
    }

    /// The generation of the rules: what was decided by an earlier one is out of date. A snapshot
    /// that is loaded after this call is of this generation or a later one.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The time of the last change.
    pub fn changed_at(&self) -> Timestamp {
        let millis = self.0.changed_at.load(Ordering::Relaxed);
        Timestamp::from_millisecond(millis).unwrap_or_default()
    }

    /// Follows changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Follows what the rules read of pods and namespaces; `None` while rules that are on are not
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
