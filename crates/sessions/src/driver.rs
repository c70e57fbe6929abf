//! The driver of the session engine: makes the calls that [`rolegate_core::engine`] requests, and
//! stores results where endpoints can read them without waiting.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rolegate_core::engine::{Action, Engine, EngineOptions, Event};
use rolegate_core::session::{Credentials, Failure, FailureKind, SessionKey};
use rolegate_runtime::clock::Clock;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{debug, info, warn};

use crate::cell::{CellContent, Cells};
use crate::lease::Sessions;
use crate::metrics::SessionMetrics;
use crate::session::Session;

/// A source of credentials for a session key: STS.
pub trait AssumeRole: Send + Sync + 'static {
    /// Makes one call, bounded in time, without retries.
    fn assume_role(
        &self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Credentials, Failure>> + Send;
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
        let (sessions, cells, events) = Self::with_events();
        let driver = Driver {
            engine: Engine::new(options),
            caller: Arc::new(caller),
            clock,
            metrics,
            cells,
            events,
            calls: JoinSet::new(),
            flying: HashMap::new(),
            changed: None,
        };
        (sessions, driver)
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
                Some(ended) = self.calls.join_next_with_id() => match self.finish(ended) {
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
            Action::Forget(key) => self.cells.remove_unused(&key),
        }
    }

    /// Publishes the result of a call and passes it to the engine.
    fn finish(
        &mut self,
        ended: Result<(Id, Result<Credentials, Failure>), JoinError>,
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
        let took = Duration::try_from(begun.duration_until(self.clock.now())).unwrap_or_default();
        self.metrics.call(&key, result.as_ref().err(), took);
        Some(match result {
            Ok(credentials) => self.fetched(key, credentials),
            Err(failure) => self.failed(key, failure),
        })
    }

    fn fetched(&self, key: Arc<SessionKey>, credentials: Credentials) -> Event {
        let validity = credentials.validity;
        debug!(
            role = %key.role,
            session = %key.name,
            access_key_id = %credentials.access_key_id,
            until = %validity.not_after,
            "session fetched"
        );
        if let Some(cell) = self.cells.get(&key) {
            if cell.content().1.is_some() {
                info!(role = %key.role, session = %key.name, "STS issues this session again");
            }
            let session = Session::new(key.last_role().clone(), credentials);
            cell.publish(CellContent {
                session: Some(Arc::new(session)),
                failure: None,
            });
        }
        Event::Fetched(key, validity)
    }

    fn failed(&self, key: Arc<SessionKey>, failure: Failure) -> Event {
        let kind = failure.kind;
        if let Some(cell) = self.cells.get(&key) {
            let (session, before) = cell.content();
            if before.as_ref() != Some(&failure) {
                warn!(
                    role = %key.role,
                    session = %key.name,
                    code = failure.code,
                    kind = kind.reason(),
                    reason = failure.message,
                    "STS issued no session"
                );
            }
            cell.publish(CellContent {
                session,
                failure: Some(failure),
            });
        }
        Event::Failed(key, kind)
    }
}
