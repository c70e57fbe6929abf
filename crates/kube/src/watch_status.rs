//! The status of a watch: a log line when it begins to fail, fails differently or recovers,
//! metrics, and a readiness condition.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rolegate_runtime::backoff::Backoff;
use tokio::time::Instant;

use crate::backoff;
use crate::error::{Failure, Kind};
use crate::watch_observer::WatchObserver;

/// The factor by which delays are longer if the API server does not have the resource: an
/// administrator has to install it, and every agent of a cluster retries.
const ABSENT_BACKOFF_FACTOR: u32 = 6;

/// An error in the data of a healthy watch. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataError(Arc<Mutex<Option<String>>>);

impl DataError {
    /// Sets or clears the error.
    pub(crate) fn set(&self, note: Option<String>) {
        *self.0.lock() = note;
    }

    fn get(&self) -> Option<String> {
        let note = self.0.lock();
        note.clone()
    }
}

/// Tracks the status of a watch.
pub(crate) struct WatchStatus {
    resource: &'static str,
    /// The resource as shown to people, such as `configmaps of namespace opa`.
    what: String,
    /// Advice if the API server does not have the resource.
    absent: &'static str,
    observer: WatchObserver,
    data_error: DataError,
    loaded: bool,
    failing: Option<Failing>,
    backoff: Backoff,
}

struct Failing {
    kind: Kind,
    since: Instant,
    attempts: u64,
}

impl WatchStatus {
    /// Creates the status of a watch that has not started. `resource` is its metric label.
    pub(crate) fn new(
        resource: &'static str,
        what: impl Into<String>,
        absent: &'static str,
        observer: WatchObserver,
    ) -> Self {
        let what = what.into();
        observer.metrics.begin(resource);
        observer
            .condition
            .fail(format!("{what} are not loaded yet"));
        Self {
            resource,
            what,
            absent,
            observer,
            data_error: DataError::default(),
            loaded: false,
            failing: None,
            backoff: backoff(),
        }
    }

    pub(crate) fn resource(&self) -> &'static str {
        self.resource
    }

    /// Returns the handle for errors in the watch's data.
    pub(crate) fn data_error(&self) -> DataError {
        self.data_error.clone()
    }

    /// Returns `true` once a complete list was received.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Counts and logs an error. Returns the delay before the next attempt.
    pub(crate) fn failed(&mut self, failure: &Failure) -> Duration {
        let resource = self.resource;
        let sentence = self.count(failure);
        match &mut self.failing {
            Some(failing) if failing.kind == failure.kind => failing.attempts += 1,
            failing => {
                let (since, attempts) = match failing {
                    Some(failing) => (failing.since, failing.attempts + 1),
                    None => (Instant::now(), 1),
                };
                *failing = Some(Failing {
                    kind: failure.kind,
                    since,
                    attempts,
                });
                match failure.kind {
                    // A normal part of the protocol.
                    Kind::Expired => {
                        tracing::debug!(resource, reason = sentence, "restarting the watch")
                    }
                    _ => tracing::warn!(resource, reason = sentence, "the watch failed, retrying"),
                }
            }
        }
        if self.loaded {
            self.observer.condition.note(sentence)
        } else {
            self.observer.condition.fail(sentence)
        }
        let wait = self.backoff.next_delay();
        match failure.kind {
            Kind::NotFound => wait * ABSENT_BACKOFF_FACTOR,
            _ => wait,
        }
    }

    /// Counts an error and returns its message.
    pub(crate) fn count(&self, failure: &Failure) -> String {
        let errors = &self.observer.metrics.errors;
        errors.get_or_create(&[("resource", self.resource)]).inc();
        self.sentence(failure)
    }

    /// Returns the message of an error.
    pub(crate) fn sentence(&self, failure: &Failure) -> String {
        let sentence = failure.sentence(&self.what);
        match failure.kind {
            Kind::NotFound if !self.absent.is_empty() => format!("{sentence}; {}", self.absent),
            _ => sentence,
        }
    }

    /// Records that a complete list was received.
    pub(crate) fn loaded(&mut self) {
        if self.loaded {
            let restarts = &self.observer.metrics.restarts;
            restarts.get_or_create(&[("resource", self.resource)]).inc();
            if self.is_failing() {
                return;
            }
        } else {
            self.loaded = true;
            tracing::debug!(resource = self.resource, "loaded");
        }
        self.settle();
    }

    /// Records that the watch has recovered.
    pub(crate) fn recovered(&mut self) {
        let Some(failing) = self.failing.take() else {
            return;
        };
        self.backoff.reset();
        if self.loaded {
            self.settle();
        }
        if failing.kind != Kind::Expired {
            let seconds = failing.since.elapsed().as_secs();
            let (resource, attempts) = (self.resource, failing.attempts);
            tracing::info!(resource, attempts, seconds, "the watch works again");
        }
    }

    /// Updates the condition with the state of the watch's data.
    pub(crate) fn settle(&self) {
        match self.data_error.get() {
            None => self.observer.condition.ok(),
            Some(note) => self.observer.condition.note(note),
        }
    }
}
