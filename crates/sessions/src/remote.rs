//! Sessions that another process fetches: stores what a broker sends in the cells that endpoints
//! read.

use std::sync::Arc;

use rolegate_core::engine::Event;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use tokio::sync::mpsc;

use crate::cell::{CellContent, Cells};
use crate::lease::Sessions;
use crate::session::Session;

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
        let (sessions, cells, events) = Self::with_events();
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
                Event::Released(key) => self.cells.remove_unused(&key),
                _ => {}
            }
        }
    }

    /// Stores the current state of a session. An existing session is kept if there is only an
    /// error, or if it expires later: brokers share nothing and fetch the same session at different
    /// times, and one that cannot reach STS may still have an old one. Credentials without a lease
    /// are dropped.
    pub fn store(
        &self,
        key: &SessionKey,
        credentials: Option<Credentials>,
        failure: Option<Failure>,
    ) {
        let Some(cell) = self.cells.get(key) else {
            return;
        };
        let (held, _) = cell.content();
        let expires_later = |held: &Arc<Session>| {
            let received = credentials.as_ref();
            received.is_none_or(|new| new.validity.not_after < held.credentials.validity.not_after)
        };
        let session = held
            .filter(expires_later)
            .or(credentials.map(|new| Arc::new(Session::new(key.last_role().clone(), new))));
        cell.publish(CellContent { session, failure });
    }
}
