//! Sessions that somebody else fetches: what a broker sends is put into the cells that doors read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rolegate_core::engine::Event;
use rolegate_core::session::{Failure, SessionKey};
use tokio::sync::mpsc;

use super::{Cells, Session, Sessions, State};

/// The other end of [`Sessions`] that are fed.
#[derive(Debug)]
pub struct Fed {
    cells: Cells,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Sessions {
    /// A handle whose sessions are brought by [`Fed`], and not fetched here.
    pub fn fed() -> (Self, Fed) {
        // Not bounded, but what is in it is: as of sessions that are fetched here.
        let (sender, events) = mpsc::unbounded_channel();
        let cells = Cells::default();
        let sessions = Self {
            cells: cells.clone(),
            events: sender,
        };
        (sessions, Fed { cells, events })
    }
}

impl Fed {
    /// The next session that a pod is waiting for; `None` when all handles and leases are gone.
    /// Sessions that nobody needs any more are forgotten, and wiped, as this is awaited.
    pub async fn asked(&mut self) -> Option<Arc<SessionKey>> {
        loop {
            match self.events.recv().await? {
                Event::Asked(key) => return Some(key),
                Event::Released(key) => self.forget(&key),
                _ => {}
            }
        }
    }

    /// Brings what a session is now. A session that was brought before stays where only a failure
    /// is, and where it lives longer: brokers that share nothing fetch the same session at other
    /// times, and one that cannot reach STS may still have an old one. What nobody has leased is
    /// dropped.
    pub fn bring(&self, key: &SessionKey, session: Option<Session>, failure: Option<Failure>) {
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
