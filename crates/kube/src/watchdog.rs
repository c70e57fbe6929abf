//! What a watch says of itself: one line when it begins to fail or fails differently, one when it
//! works again, counts, and a condition of readiness.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff;
use crate::failure::{Failure, Kind};
use crate::watch::Reporting;

/// How much longer the waits are where the API server has no such resource: somebody has to install
/// it, and an agent on each of thousands of nodes asks.
const ABSENT: u32 = 6;

/// Something that is wrong with what a watch brings, while the watch itself is well. Cheap to
/// clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// What is wrong from now on, in a sentence.
    pub(crate) fn set(&self, note: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    fn get(&self) -> Option<String> {
        let note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        note.clone()
    }
}

/// Keeps what a watch says of itself.
pub(crate) struct Watchdog {
    resource: &'static str,
    /// The same for people, such as `configmaps of namespace opa`.
    what: String,
    /// What to do where the API server has no such resource.
    absent: &'static str,
    reporting: Reporting,
    trouble: Trouble,
    loaded: bool,
    failing: Option<Failing>,
    waits: Box<dyn Iterator<Item = Duration> + Send>,
}

struct Failing {
    kind: Kind,
    since: Instant,
    attempts: u64,
}

impl Watchdog {
    /// A watch that has not begun. `resource` is the label of its counts.
    pub(crate) fn new(
        resource: &'static str,
        what: impl Into<String>,
        absent: &'static str,
        reporting: Reporting,
    ) -> Self {
        let what = what.into();
        reporting.metrics.begin(resource);
        reporting
            .condition
            .fail(format!("{what} are not loaded yet"));
        Self {
            resource,
            what,
            absent,
            reporting,
            trouble: Trouble::default(),
            loaded: false,
            failing: None,
            waits: Box::new(backoff()),
        }
    }

    pub(crate) fn resource(&self) -> &'static str {
        self.resource
    }

    /// Where to say what is wrong with what the watch brings.
    pub(crate) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Whether a whole list has come.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Counts and tells a failure; how long to wait before the next attempt.
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
                    // Part of the protocol.
                    Kind::Expired => {
                        tracing::debug!(resource, reason = sentence, "the watch starts anew")
                    }
                    _ => tracing::warn!(resource, reason = sentence, "the watch failed, retrying"),
                }
            }
        }
        match self.loaded {
            true => self.reporting.condition.note(sentence),
            false => self.reporting.condition.fail(sentence),
        }
        let wait = self.waits.next().unwrap_or(Duration::from_secs(5));
        match failure.kind {
            Kind::NotFound => wait * ABSENT,
            _ => wait,
        }
    }

    /// Counts a failure; what there is to say about it.
    pub(crate) fn count(&self, failure: &Failure) -> String {
        let errors = &self.reporting.metrics.errors;
        errors.get_or_create(&[("resource", self.resource)]).inc();
        self.sentence(failure)
    }

    /// What there is to say about a failure.
    pub(crate) fn sentence(&self, failure: &Failure) -> String {
        let sentence = failure.sentence(&self.what);
        match failure.kind {
            Kind::NotFound if !self.absent.is_empty() => format!("{sentence}; {}", self.absent),
            _ => sentence,
        }
    }

    /// A whole list has come.
    pub(crate) fn loaded(&mut self) {
        if self.loaded {
            let restarts = &self.reporting.metrics.restarts;
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

    /// The API server was heard again.
    pub(crate) fn recovered(&mut self) {
        let Some(failing) = self.failing.take() else {
            return;
        };
        self.waits = Box::new(backoff());
        if self.loaded {
            self.settle();
        }
        if failing.kind != Kind::Expired {
            let seconds = failing.since.elapsed().as_secs();
            let (resource, attempts) = (self.resource, failing.attempts);
            tracing::info!(resource, attempts, seconds, "the watch works again");
        }
    }

    /// Says how it is with what the watch brought.
    pub(crate) fn settle(&self) {
        match self.trouble.get() {
            None => self.reporting.condition.ok(),
            Some(note) => self.reporting.condition.note(note),
        }
    }
}
