//! The driver of the session engine: makes the calls that [`rolegate_core::engine`] asks for and
//! keeps what they bring where doors can read it without waiting.
//!
//! A [`Lease`] says that a workload needs a session; dropping it says that it does not any more.
//! What the session is right now stands in the lease's [`SessionCell`], lock-free to read.

mod fed;
mod kube2iam;
mod metrics;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use rolegate_core::document;
use rolegate_core::engine::{Action, Cause, Engine, EngineOptions, Event};
use rolegate_core::session::{Credentials, Failure, FailureKind, Life, SessionKey};
use rolegate_runtime::clock::Clock;
use tokio::sync::{Notify, mpsc};
use tokio::task::{Id, JoinSet};
use tracing::{debug, info, warn};

pub use fed::Fed;
pub use metrics::SessionMetrics;

/// Whoever can turn a key into credentials: STS.
pub trait AssumeRole: Send + Sync + 'static {
    /// Makes one call, bounded in time, without retrying.
    fn assume_role(
        &self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Credentials, Failure>> + Send;
}

/// A session, as doors serve it.
#[derive(Debug)]
pub struct Session {
    /// Names the session in CloudTrail; not a secret.
    pub access_key_id: String,
    /// From the call until STS's `Expiration`.
    pub life: Life,
    /// The credentials document of the metadata service, wiped when dropped.
    pub document: Document,
}

/// Bytes that hold secrets: they are never formatted.
#[derive(Clone)]
pub struct Document(Bytes);

impl Document {
    /// A document that is wiped when the last of its bytes is dropped, which is whoever made it to
    /// see to.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes, shared and not copied.
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Document(…)")
    }
}

/// What a session is right now.
#[derive(Debug, Default)]
struct State {
    session: Option<Arc<Session>>,
    /// The last call's failure, if it failed.
    failure: Option<Failure>,
}

/// What a door finds in a cell.
#[derive(Debug, Clone)]
pub enum Current {
    /// Serve it.
    Live(Arc<Session>),
    /// There is none, and the last call failed.
    Failed(Failure),
    /// The first call is not finished.
    Fetching,
}

/// Where the driver puts a session and doors read it.
#[derive(Debug)]
pub struct SessionCell {
    key: Arc<SessionKey>,
    state: ArcSwap<State>,
    changed: Notify,
    asked: AtomicBool,
    leases: AtomicUsize,
}

impl SessionCell {
    /// What shaped the session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The same, to keep.
    pub fn shared_key(&self) -> Arc<SessionKey> {
        self.key.clone()
    }

    /// What the session is now. A session that is over is never returned.
    pub fn current(&self, now: Timestamp) -> Current {
        let state = self.state.load();
        match (&state.session, &state.failure) {
            (Some(session), _) if session.life.is_valid(now) => Current::Live(session.clone()),
            (_, Some(failure)) => Current::Failed(failure.clone()),
            _ => Current::Fetching,
        }
    }

    /// The session, valid or over, and the last call's failure: whatever there is, to pass on.
    pub fn state(&self) -> (Option<Arc<Session>>, Option<Failure>) {
        let state = self.state.load();
        (state.session.clone(), state.failure.clone())
    }

    /// The next change after this call. To miss none: make the future, look, then await it.
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

/// Hands out leases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    cells: Cells,
    events: mpsc::UnboundedSender<Event>,
}

impl Sessions {
    /// A handle, and the driver that must be run for it. The driver ends when all handles and
    /// leases are gone; dropping it aborts the calls in flight.
    pub fn new<C: AssumeRole>(
        caller: C,
        options: EngineOptions,
        clock: Clock,
        metrics: SessionMetrics,
    ) -> (Self, Driver<C>) {
        // Not bounded, but what is in it is: one event for each change of a workload, drained
        // without waiting for anything.
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

    /// Says that a workload of `namespace` needs the session of `key`.
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
        // Counted under the lock, so that the driver cannot forget the cell at this moment.
        cell.leases.fetch_add(1, Ordering::Relaxed);
        let wanted = Event::Wanted {
            key: cell.key.clone(),
            namespace: namespace.clone(),
            cause,
        };
        // A send fails only where the driver has ended, and then the process ends.
        let _ = self.events.send(wanted);
        Lease {
            cell,
            namespace,
            events: self.events.clone(),
        }
    }

    /// How old the sessions are that are kept now, and how long they live on.
    pub fn lives(&self, now: Timestamp) -> Lives {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lives = Lives::default();
        for cell in cells.values() {
            if let Some(session) = &cell.state.load().session {
                let life = session.life;
                let age = life.from.duration_until(now).as_secs_f64();
                lives.count += 1;
                let earliest = lives.earliest_expiration;
                let earliest = earliest.map_or(life.until, |known| known.min(life.until));
                lives.earliest_expiration = Some(earliest);
                lives.oldest_age = Some(lives.oldest_age.map_or(age, |oldest| oldest.max(age)));
            }
        }
        lives
    }
}

/// The lives of all sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lives {
    /// Sessions that were fetched.
    pub count: usize,
    /// The expiration of the one that expires first.
    pub earliest_expiration: Option<Timestamp>,
    /// The age of the oldest, in seconds.
    pub oldest_age: Option<f64>,
}

/// A workload's need of a session, until dropped.
#[derive(Debug)]
pub struct Lease {
    cell: Arc<SessionCell>,
    /// Of the workload: what it causes is charged to this one.
    namespace: Arc<str>,
    events: mpsc::UnboundedSender<Event>,
}

impl Lease {
    /// Where the session stands.
    pub fn cell(&self) -> &SessionCell {
        &self.cell
    }

    /// Says that a pod is waiting for it now.
    pub fn ask(&self) {
        if !self.cell.asked.swap(true, Ordering::Relaxed) {
            let _ = self.events.send(Event::Asked(self.cell.key.clone()));
        }
    }

    /// Says it again, if a pod is still waiting: whoever was told may not be there any more.
    pub fn ask_again(&self) {
        if self.cell.asked.load(Ordering::Relaxed) {
            let _ = self.events.send(Event::Asked(self.cell.key.clone()));
        }
    }

    /// Says that something changed which may make a refused call succeed.
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
    /// Told of each session that changed.
    changed: Option<mpsc::UnboundedSender<Arc<SessionKey>>>,
}

impl<C: AssumeRole> Driver<C> {
    /// Tells `changed` of each session that was fetched or could not be.
    pub fn telling(mut self, changed: mpsc::UnboundedSender<Arc<SessionKey>>) -> Self {
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
                // A send fails only where nobody listens any more.
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

    /// Publishes how a call ended and tells the engine.
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
                    message: "the call ended in a fault of rolegate, see its log".into(),
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
                        info!(role = %key.role, session = %key.name, "STS gives this session again");
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
                            "STS gave no session"
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
