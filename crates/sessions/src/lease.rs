//! Leases: the use of a session by a workload.

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::engine::{Cause, Event};
use rolegate_core::session::SessionKey;
use tokio::sync::mpsc;

use crate::cell::{Cells, SessionCell};

/// Creates leases. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct Sessions {
    cells: Cells,
    events: mpsc::UnboundedSender<Event>,
}

impl Sessions {
    /// Creates a handle, and returns its cells and the events of its leases for the writer of the
    /// cells.
    pub(crate) fn with_events() -> (Self, Cells, mpsc::UnboundedReceiver<Event>) {
        // Unbounded, but its content is bounded: one event for each change of a workload, drained
        // without waiting.
        let (sender, events) = mpsc::unbounded_channel();
        let cells = Cells::default();
        let sessions = Self {
            cells: cells.clone(),
            events: sender,
        };
        (sessions, cells, events)
    }

    /// Leases the session of `key` for a workload of `namespace`.
    pub fn lease(&self, key: SessionKey, namespace: Arc<str>, cause: Cause) -> Lease {
        let cell = self.cells.lease(key);
        let wanted = Event::Acquired {
            key: cell.shared_key(),
            namespace: namespace.clone(),
            cause,
        };
        // Sending fails only if the driver has exited, and then the process exits.
        let _ = self.events.send(wanted);
        Lease {
            cell,
            namespace,
            events: self.events.clone(),
        }
    }

    /// Returns statistics about the ages and expirations of the sessions.
    pub fn stats(&self, now: Timestamp) -> SessionStats {
        let mut stats = SessionStats::default();
        for session in self.cells.sessions() {
            let validity = session.credentials.validity;
            let age = validity.not_before.duration_until(now).as_secs_f64();
            stats.count += 1;
            let earliest = stats
                .earliest_expiration
                .map_or(validity.not_after, |known| known.min(validity.not_after));
            stats.earliest_expiration = Some(earliest);
            stats.oldest_age = Some(stats.oldest_age.map_or(age, |oldest| oldest.max(age)));
        }
        stats
    }
}

/// Statistics about the sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SessionStats {
    /// The number of fetched sessions.
    pub count: usize,
    /// The earliest expiration.
    pub earliest_expiration: Option<Timestamp>,
    /// The maximum age, in seconds.
    pub oldest_age: Option<f64>,
}

/// Keeps a session in use for a workload until dropped.
#[derive(Debug)]
pub struct Lease {
    cell: Arc<SessionCell>,
    /// The workload's namespace, to which its calls are charged.
    namespace: Arc<str>,
    events: mpsc::UnboundedSender<Event>,
}

impl Lease {
    /// Returns the cell of the session.
    pub fn cell(&self) -> &SessionCell {
        &self.cell
    }

    /// Prioritizes the session, because a pod is waiting for it.
    pub fn prioritize(&self) {
        if self.cell.mark_requested() {
            let _ = self.events.send(Event::Prioritized(self.cell.shared_key()));
        }
    }

    /// Sends the request of [`Self::prioritize`] again if a pod still waits for the session.
    /// Brokered agents call this on a new stream: the previous request went to another broker.
    pub fn reprioritize(&self) {
        if self.cell.is_requested() {
            let _ = self.events.send(Event::Prioritized(self.cell.shared_key()));
        }
    }

    /// Retries a refused call after a change that may make it succeed.
    pub fn retry(&self) {
        let _ = self.events.send(Event::Changed {
            key: self.cell.shared_key(),
            namespace: self.namespace.clone(),
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.cell.release();
        let _ = self.events.send(Event::Released(self.cell.shared_key()));
    }
}
