//! Sessions that another process fetches: stores what a broker sends in the cells that endpoints
//! read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rolegate_core::engine::Event;
use rolegate_core::session::{Failure, SessionKey};
use tokio::sync::mpsc;

use super::{Cells, Session, Sessions, State};

/// Stores sessions for a [`Sessions`] handle without a driver.
#[derive(Debug)]
pub struct RemoteSessions {
    cells: Cells,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Sessions {
    /// Creates a handle whose sessions are stored by [`RemoteSessions`] instead of being fetched
    /// here.
    pub fn remote() -> (Self, RemoteSessions) {
        // Unbounded, but its content is bounded, as for sessions that are fetched here.
        let (sender, events) = mpsc::unbounded_channel();
        let cells = Cells::default();
        let sessions = Self {
            cells: cells.clone(),
            events: sender,
        };
        (sessions, RemoteSessions { cells, events })
    }
}

impl RemoteSessions {
    /// Returns the next session that a pod is waiting for, or `None` when all handles and leases
    /// are gone. Awaiting this also removes and wipes unused sessions.
    pub async fn next_requested(&mut self) -> Option<Arc<SessionKey>> {
        loop {
            match self.events.recv().await? {
                Event::Prioritized(key) => return Some(key),
                Event::Released(key) => self.forget(&key),
                _ => {}
            }
        }
    }

    /// Stores the current state of a session. An existing session is kept if there is only an
    /// error, or if it expires later: brokers share nothing and fetch the same session at different
    /// times, and one that cannot reach STS may still have an old one. Sessions without a lease are
    /// dropped.
    pub fn store(&self, key: &SessionKey, session: Option<Session>, failure: Option<Failure>) {
        let cell = {
            let cells = self
                .cells
                .lock()
                .unwrap_or_else(|broken| broken.into_inner());
            cells.get(key).cloned()
        };
        if let Some(cell) = cell {
            let held = cell.state().0;
            let lives_longer = |held: &Arc<Session>| {
                let brought = session.as_ref().map(|session| session.life.until);
                brought.is_none_or(|until| until < held.life.until)
            };
            let session = held.filter(lives_longer).or(session.map(Arc::new));
            cell.publish(State { session, failure });
        }
    }

    fn forget(&self, key: &Arc<SessionKey>) {
        let mut cells = self
            .cells
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        if let Some(cell) = cells.get(key)
            && cell.leases.load(Ordering::Relaxed) == 0
        {
            cells.remove(key);
        }
    }
}
