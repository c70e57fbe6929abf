//! The driver of the session engine: makes the calls that [`rolegate_core::engine`] requests, and
//! stores results where endpoints can read them without waiting.
//!
//! A [`Lease`] keeps a session in use; dropping it releases it. The lease's [`SessionCell`] holds
//! the current session and is lock-free to read.

mod kube2iam;
mod metrics;
mod remote;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use rolegate_core::document;
use rolegate_core::engine::{Action, Cause, Engine, EngineOptions, Event};
use rolegate_core::session::{Credentials, Failure, FailureKind, SessionKey, Validity};
use rolegate_runtime::clock::Clock;
use tokio::sync::{Notify, mpsc};
use tokio::task::{Id, JoinSet};
use tracing::{debug, info, warn};

pub use metrics::SessionMetrics;
pub use remote::RemoteSessions;

/// A source of credentials for a session key: STS.
pub trait AssumeRole: Send + Sync + 'static {
    /// Makes one call, bounded in time, without retries.
    fn assume_role(
        &self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Credentials, Failure>> + Send;
}

/// A session, as endpoints serve it.
#[derive(Debug)]
pub struct Session {
    /// Identifies the session in CloudTrail. Not a secret.
    pub access_key_id: String,
    /// From the call to STS's `Expiration`.
    pub life: Validity,
    /// The rendered document of the metadata service, wiped when dropped.
    pub document: Document,
}

/// Bytes with secrets, which are never formatted.
#[derive(Clone)]
pub struct Document(Bytes);

impl Document {
    /// Creates a document. The caller must provide bytes that are wiped when their last reference
    /// is dropped.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, shared and not copied.
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Document(…)")
    }
}

/// The state of a session.
#[derive(Debug, Default)]
struct State {
    session: Option<Arc<Session>>,
    /// The error of the last call, if it failed.
    failure: Option<Failure>,
}

/// The content of a cell for an endpoint.
#[derive(Debug, Clone)]
pub enum Current {
    /// A valid session.
    Live(Arc<Session>),
    /// There is none, and the last call failed.
    Failed(Failure),
    /// The first call is in progress.
    Fetching,
}

/// The place of a session, written by the driver and read by endpoints.
#[derive(Debug)]
pub struct SessionCell {
    key: Arc<SessionKey>,
    state: ArcSwap<State>,
    changed: Notify,
    asked: AtomicBool,
    leases: AtomicUsize,
}

impl SessionCell {
    /// Returns the session's key.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// Returns the session's key, shared.
    pub fn shared_key(&self) -> Arc<SessionKey> {
        self.key.clone()
    }

    /// Returns the current session. Never returns an expired one.
    pub fn current(&self, now: Timestamp) -> Current {
        let state = self.state.load();
        match (&state.session, &state.failure) {
            (Some(session), _) if session.life.is_valid(now) => Current::Live(session.clone()),
            (_, Some(failure)) => Current::Failed(failure.clone()),
            _ => Current::Fetching,
        }
    }

    /// Returns the session, valid or expired, and the last call's error, to pass on to other
    /// processes.
    pub fn state(&self) -> (Option<Arc<Session>>, Option<Failure>) {
        let state = self.state.load();
        (state.session.clone(), state.failure.clone())
    }

    /// Waits for the next change after this call. To miss none: create the future, read the state,
    /// then await it.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    fn publish(&self, state: State) {
        self.state.store(Arc::new(state));
        self.asked.store(false, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

type Cells = Arc<Mutex<HashMap<Arc<SessionKey>, Arc<SessionCell>>>>;

/// Creates leases. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Sessions {
    cells: Cells,
    events: mpsc::UnboundedSender<Event>,
}

impl Sessions {
    /// Creates a handle and its driver, which must be run. The driver ends when all handles and
    /// leases are gone; dropping it aborts the calls in flight.
    pub fn new<C: AssumeRole>(
        caller: C,
        options: EngineOptions,
        clock: Clock,
        metrics: SessionMetrics,
    ) -> (Self, Driver<C>) {
        // Unbounded, but its content is bounded: one event for each change of a workload, drained
        // without waiting.
        let (sender, receiver) = mpsc::unbounded_channel();
        let cells = Cells::default();
        let driver = Driver {
            engine: Engine::new(options),
            caller: Arc::new(caller),
            clock,
            metrics,
            cells: cells.clone(),
            events: receiver,
            calls: JoinSet::new(),
            flying: HashMap::new(),
            changed: None,
        };
        let sessions = Self {
            cells,
            events: sender,
        };
        (sessions, driver)
    }

    /// Leases the session of `key` for a workload of `namespace`.
    pub fn lease(&self, key: SessionKey, namespace: Arc<str>, cause: Cause) -> Lease {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::new(key);
        let cell = cells
            .entry(key.clone())
            .or_insert_with(|| {
                Arc::new(SessionCell {
                    key,
                    state: ArcSwap::default(),
                    changed: Notify::new(),
                    asked: AtomicBool::new(false),
                    leases: AtomicUsize::new(0),
                })
            })
            .clone();
        // Counted under the lock, so that the driver cannot remove the cell at this moment.
        cell.leases.fetch_add(1, Ordering::Relaxed);
        let wanted = Event::Acquired {
            key: cell.key.clone(),
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
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = SessionStats::default();
        for cell in cells.values() {
            if let Some(session) = &cell.state.load().session {
                let life = session.life;
                let age = life.from.duration_until(now).as_secs_f64();
                stats.count += 1;
                let earliest = stats.earliest_expiration;
                let earliest = earliest.map_or(life.until, |known| known.min(life.until));
                stats.earliest_expiration = Some(earliest);
                stats.oldest_age = Some(stats.oldest_age.map_or(age, |oldest| oldest.max(age)));
            }
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
        if !self.cell.asked.swap(true, Ordering::Relaxed) {
            let _ = self.events.send(Event::Prioritized(self.cell.key.clone()));
        }
    }

    /// Prioritizes the session again for a pod that is still waiting: the previous receiver may be
    /// gone.
    pub fn prioritize_again(&self) {
        if self.cell.asked.load(Ordering::Relaxed) {
            let _ = self.events.send(Event::Prioritized(self.cell.key.clone()));
        }
    }

    /// Retries a refused call after a change that may make it succeed.
    pub fn retry(&self) {
        let _ = self.events.send(Event::Changed {
            key: self.cell.key.clone(),
            namespace: self.namespace.clone(),
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.cell.leases.fetch_sub(1, Ordering::Relaxed);
        let _ = self.events.send(Event::Released(self.cell.key.clone()));
    }
}

/// Runs the engine: the one task that owns its state.
pub struct Driver<C> {
    engine: Engine,
    caller: Arc<C>,
    clock: Clock,
    metrics: SessionMetrics,
    cells: Cells,
    events: mpsc::UnboundedReceiver<Event>,
    calls: JoinSet<Result<Credentials, Failure>>,
    flying: HashMap<Id, (Arc<SessionKey>, Timestamp)>,
    /// Receives the key of each session that changed.
    changed: Option<mpsc::UnboundedSender<Arc<SessionKey>>>,
}

impl<C: AssumeRole> Driver<C> {
    /// Sends the key of each session to `changed` when it was fetched or its call failed.
    pub fn notify_changes(mut self, changed: mpsc::UnboundedSender<Arc<SessionKey>>) -> Self {
        self.changed = Some(changed);
        self
    }

    /// Runs until all handles and leases are gone.
    pub async fn run(mut self) {
        loop {
            let wake_at = self.engine.wake_at();
            let wake = async {
                match wake_at {
                    Some(time) => self.clock.sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                Some(ended) = self.calls.join_next_with_id() => match self.ended(ended) {
                    Some(event) => event,
                    None => continue,
                },
                () = wake => Event::Tick,
            };
            let ended = match &event {
                Event::Fetched(key, _) | Event::Failed(key, _) => Some(key.clone()),
                _ => None,
            };
            if let (Some(key), Some(changed)) = (ended, &self.changed) {
                // Sending fails only if the receiver is closed.
                let _ = changed.send(key);
            }
            let now = self.clock.now();
            for action in self.engine.handle(event, now) {
                self.act(action);
            }
            self.metrics.set_counts(&self.engine.counts(now));
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Fetch(key) => {
                let caller = self.caller.clone();
                let call = key.clone();
                let handle = self
                    .calls
                    .spawn(async move { caller.assume_role(&call).await });
                self.flying.insert(handle.id(), (key, self.clock.now()));
            }
            Action::Forget(key) => {
                let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(cell) = cells.get(&key)
                    && cell.leases.load(Ordering::Relaxed) == 0
                {
                    cells.remove(&key);
                }
            }
        }
    }

    /// Publishes the result of a call and passes it to the engine.
    fn ended(
        &mut self,
        ended: Result<(Id, Result<Credentials, Failure>), tokio::task::JoinError>,
    ) -> Option<Event> {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let failure = Failure {
                    kind: FailureKind::Temporary,
                    code: "Internal".into(),
                    message: "internal error: the call panicked, see rolegate's log".into(),
                    cause: None,
                };
                (error.id(), Err(failure))
            }
        };
        let (key, begun) = self.flying.remove(&id)?;
        let took = std::time::Duration::try_from(begun.duration_until(self.clock.now()))
            .unwrap_or_default();
        let cell = {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            cells.get(&key).cloned()
        };
        match result {
            Ok(credentials) => {
                self.metrics.call(&key, None, took);
                debug!(role = %key.role, session = %key.name, access_key_id = credentials.access_key_id, until = %credentials.life.until, "session fetched");
                let life = credentials.life;
                if let Some(cell) = cell {
                    let recovered = cell.state.load().failure.is_some();
                    if recovered {
                        info!(role = %key.role, session = %key.name, "STS issues this session again");
                    }
                    cell.publish(State {
                        session: Some(Arc::new(Session {
                            document: Document(document::credentials(&credentials)),
                            access_key_id: credentials.access_key_id,
                            life,
                        })),
                        failure: None,
                    });
                }
                Some(Event::Fetched(key, life))
            }
            Err(failure) => {
                self.metrics.call(&key, Some(&failure), took);
                let kind = failure.kind;
                if let Some(cell) = cell {
                    let before = cell.state.load_full();
                    if before.failure.as_ref() != Some(&failure) {
                        warn!(
                            role = %key.role,
                            session = %key.name,
                            code = failure.code,
                            kind = kind.reason(),
                            reason = failure.message,
                            "STS issued no session"
                        );
                    }
                    cell.publish(State {
                        session: before.session.clone(),
                        failure: Some(failure),
                    });
                }
                Some(Event::Failed(key, kind))
            }
        }
    }
}

#[cfg(test)]
mod tests;
