//! Cells: one writer stores a session, and endpoints read it without waiting.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use rolegate_core::session::{Failure, SessionKey};
use tokio::sync::Notify;

use crate::session::Session;

/// The content of a cell.
#[derive(Debug, Default)]
pub(crate) struct CellContent {
    pub(crate) session: Option<Arc<Session>>,
    /// The error of the last call, if it failed.
    pub(crate) failure: Option<Failure>,
}

/// The state of a session for an endpoint.
#[derive(Debug, Clone)]
pub enum SessionState {
    /// A valid session.
    Valid(Arc<Session>),
    /// No session is valid, and the last call failed.
    Failed(Failure),
    /// The first call has not returned yet.
    Fetching,
}

/// The place of a session, written by the driver and read by endpoints.
#[derive(Debug)]
pub struct SessionCell {
    key: Arc<SessionKey>,
    content: ArcSwap<CellContent>,
    changed: Notify,
    asked: AtomicBool,
    leases: AtomicUsize,
}

impl SessionCell {
    fn new(key: Arc<SessionKey>) -> Self {
        Self {
            key,
            content: ArcSwap::default(),
            changed: Notify::new(),
            asked: AtomicBool::new(false),
            leases: AtomicUsize::new(0),
        }
    }

    /// Returns the session's key.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// Returns the session's key, shared.
    pub fn shared_key(&self) -> Arc<SessionKey> {
        self.key.clone()
    }

    /// Returns the state at this time. An expired session is never returned.
    pub fn state(&self, now: Timestamp) -> SessionState {
        let content = self.content.load();
        match (&content.session, &content.failure) {
            (Some(session), _) if session.credentials.validity.is_valid(now) => {
                SessionState::Valid(session.clone())
            }
            (_, Some(failure)) => SessionState::Failed(failure.clone()),
            _ => SessionState::Fetching,
        }
    }

    /// Returns the session, valid or expired, and the last call's error, to pass on to other
    /// processes.
    pub fn content(&self) -> (Option<Arc<Session>>, Option<Failure>) {
        let content = self.content.load();
        (content.session.clone(), content.failure.clone())
    }

    /// Waits for the next change after this call. To miss none: create the future, read the state,
    /// then await it.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    /// Replaces the content and wakes all waiting requests.
    pub(crate) fn publish(&self, content: CellContent) {
        self.content.store(Arc::new(content));
        self.asked.store(false, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Marks the session as requested until its state changes. Returns true if it was not marked.
    pub(crate) fn mark_requested(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Returns true if a pod has requested the session since its state changed.
    pub(crate) fn is_requested(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Removes one lease.
    pub(crate) fn release(&self) {
        self.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The cells of all sessions in use. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cells(Arc<Mutex<HashMap<Arc<SessionKey>, Arc<SessionCell>>>>);

impl Cells {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<SessionKey>, Arc<SessionCell>>> {
        self.0.lock()
    }

    /// Returns the cell of `key` with one more lease.
    pub(crate) fn lease(&self, key: SessionKey) -> Arc<SessionCell> {
        let key = Arc::new(key);
        let mut cells = self.lock();
        let cell = cells
            .entry(key.clone())
            .or_insert_with(|| Arc::new(SessionCell::new(key)));
        // Counted under the lock, so that the cell cannot be removed at this moment.
        cell.leases.fetch_add(1, Ordering::Relaxed);
        cell.clone()
    }

    /// Returns the cell of `key`, if there is one.
    pub(crate) fn get(&self, key: &SessionKey) -> Option<Arc<SessionCell>> {
        self.lock().get(key).cloned()
    }

    /// Removes the cell of `key`, and thereby wipes its session, unless it was leased again.
    pub(crate) fn remove_unused(&self, key: &Arc<SessionKey>) {
        if let Entry::Occupied(cell) = self.lock().entry(key.clone())
            && cell.get().leases.load(Ordering::Relaxed) == 0
        {
            cell.remove();
        }
    }

    /// Returns all sessions.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        let cells = self.lock();
        let sessions = cells
            .values()
            .map(|cell| cell.content.load().session.clone());
        sessions.flatten().collect()
    }
}
