//! Events on pods, so that `kubectl describe pod` tells its owner why it gets no credentials, and
//! on ConfigMaps whose policies can't be used.
//!
//! They are a courtesy and never in the way: whoever reports one doesn't wait, an object's repeats are
//! dropped, and so is what comes faster than an API server should be bothered.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::workload::Workload;
use rolegate_runtime::logging;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config_maps::ConfigMap;
use crate::failure::Failure;

/// Events that wait to be written.
const QUEUE: usize = 64;
/// How long an object isn't told the same again.
const QUIET: Duration = Duration::from_secs(300);
/// Events at once, from all objects; then one in each [`PERIOD`].
const BURST: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);
/// The most bytes of a message; the API server takes 1,024.
const LONGEST: usize = 1000;
/// How long the API server may take for one.
const WRITE: Duration = Duration::from_secs(10);

/// What an Event is about; its `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// The pod may not have the role it asks for.
    RoleForbidden,
    /// The pod may have the role, but there are no credentials for it.
    CredentialError,
    /// A policy or its data can't be used as it is written.
    PolicyInvalid,
}

impl EventReason {
    /// As Kubernetes shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "RoleForbidden",
            Self::CredentialError => "CredentialError",
            Self::PolicyInvalid => "PolicyInvalid",
        }
    }

    /// What was being done.
    fn action(self) -> &'static str {
        match self {
            Self::RoleForbidden | Self::CredentialError => "GetCredentials",
            Self::PolicyInvalid => "LoadPolicy",
        }
    }
}

type Outcome = [(&'static str, &'static str); 1];

/// Takes Events to be written. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Eventer {
    queue: mpsc::Sender<ObjectEvent>,
    limiter: Arc<Mutex<Limiter>>,
    outcomes: Family<Outcome, Counter>,
}

impl fmt::Debug for Eventer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eventer").finish_non_exhaustive()
    }
}

/// Writes them. Run this until it ends, which it does with the last [`Eventer`].
pub struct EventWriter {
    queue: mpsc::Receiver<ObjectEvent>,
    client: Client,
    reporter: Reporter,
    outcomes: Family<Outcome, Counter>,
}

impl fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWriter")
            .field("reporter", &self.reporter)
            .finish_non_exhaustive()
    }
}

struct ObjectEvent {
    about: ObjectReference,
    reason: EventReason,
    message: String,
}

/// Both ends, for the agent. `instance` names who reports, as in the name of the node. Registers
/// `kube_events_total` by `outcome`: `written`, `failed`, `dropped` (limits or a full queue; an
/// object's repeats are not counted).
pub fn eventer(
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (Eventer, EventWriter) {
    eventer_as("rolegate-agent", client, instance, registry)
}

/// Both ends, as [`eventer`], for any part of rolegate; `controller` is its name.
pub fn eventer_as(
    controller: &'static str,
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (Eventer, EventWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let outcomes = Family::<Outcome, Counter>::default();
    for outcome in ["written", "failed", "dropped"] {
        // There from the start, as zero.
        drop(outcomes.get_or_create(&[("outcome", outcome)]));
    }
    registry.register("kube_events", "Events on objects", outcomes.clone());
    let eventer = Eventer {
        queue: sender,
        limiter: Arc::new(Mutex::new(Limiter::new())),
        outcomes: outcomes.clone(),
    };
    let reporter = Reporter {
        controller: controller.into(),
        instance: Some(instance),
    };
    (
        eventer,
        EventWriter {
            queue: receiver,
            client,
            reporter,
            outcomes,
        },
    )
}

impl Eventer {
    /// Tells the owner of `pod`. Returns at once, and may drop it.
    pub fn tell(&self, pod: &Workload, reason: EventReason, message: &str) {
        self.offer(&pod.uid, reason, message, || ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        });
    }

    /// Tells whoever wrote `map`. Returns at once, and may drop it.
    pub fn tell_policy(&self, map: &ConfigMap, message: &str) {
        let reason = EventReason::PolicyInvalid;
        self.offer(&map.uid, reason, message, || ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ConfigMap".into()),
            namespace: Some(map.namespace.to_string()),
            name: Some(map.name.to_string()),
            uid: Some(map.uid.to_string()),
            ..ObjectReference::default()
        });
    }

    fn offer(
        &self,
        uid: &Arc<str>,
        reason: EventReason,
        message: &str,
        about: impl FnOnce() -> ObjectReference,
    ) {
        let verdict = self
            .limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ask(uid, reason, Instant::now());
        let sent = match verdict {
            Verdict::Repeat => return,
            Verdict::TooMany => false,
            Verdict::Allowed => {
                let event = ObjectEvent {
                    about: about(),
                    reason,
                    message: bounded(message),
                };
                self.queue.try_send(event).is_ok()
            }
        };
        if !sent {
            self.outcomes.get_or_create(&[("outcome", "dropped")]).inc();
        }
    }
}

/// The message on one line, cut to what the API server takes.
fn bounded(message: &str) -> String {
    // Escaping only makes it longer; what is cut off anyway needs none.
    let head = message
        .get(..message.floor_char_boundary(LONGEST))
        .unwrap_or(message);
    let mut text = logging::escape(head);
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

impl EventWriter {
    /// Writes what comes, one after the other.
    pub async fn run(mut self) {
        let mut told = None;
        while let Some(event) = self.queue.recv().await {
            let outcome = match self.write(event).await {
                Ok(()) => {
                    told = None;
                    "written"
                }
                Err(failure) => {
                    if told.replace(failure.kind) != Some(failure.kind) {
                        let sentence = failure.sentence("events");
                        tracing::warn!("cannot write Events: {sentence}");
                    }
                    "failed"
                }
            };
            self.outcomes.get_or_create(&[("outcome", outcome)]).inc();
        }
    }

    async fn write(&self, event: ObjectEvent) -> Result<(), Failure> {
        // A recorder remembers what it wrote and counts repeats up under the first message, which
        // may be wrong by now; a fresh one doesn't.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let content = Event {
            type_: EventType::Warning,
            reason: event.reason.as_str().into(),
            note: Some(event.message),
            action: event.reason.action().into(),
            secondary: None,
        };
        match tokio::time::timeout(WRITE, recorder.publish(&content, &event.about)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::of_call(&error)),
            Err(_) => Err(Failure::no_answer(WRITE)),
        }
    }
}

/// What the limiter says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// The object was told a short while ago.
    Repeat,
    /// Too many from all objects.
    TooMany,
}

/// One in [`QUIET`] for an object and reason, one in [`PERIOD`] after a [`BURST`] for all. It keeps
/// only what it allowed, so its size is bounded by the rate.
struct Limiter {
    told: HashMap<(Arc<str>, EventReason), Instant>,
    tokens: u32,
    filled: Instant,
}

impl Limiter {
    fn new() -> Self {
        Self {
            told: HashMap::new(),
            tokens: BURST,
            filled: Instant::now(),
        }
    }

    fn ask(&mut self, uid: &Arc<str>, reason: EventReason, now: Instant) -> Verdict {
        let key = (Arc::clone(uid), reason);
        if self
            .told
            .get(&key)
            .is_some_and(|&told| now.duration_since(told) < QUIET)
        {
            return Verdict::Repeat;
        }
        while self.tokens < BURST && now.duration_since(self.filled) >= PERIOD {
            self.tokens += 1;
            self.filled += PERIOD;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        let Some(left) = self.tokens.checked_sub(1) else {
            return Verdict::TooMany;
        };
        self.tokens = left;
        self.told
            .retain(|_, &mut told| now.duration_since(told) < QUIET);
        self.told.insert(key, now);
        Verdict::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u32) -> Arc<str> {
        number.to_string().into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_told_once_in_five_minutes_for_each_reason() {
        let mut limiter = Limiter::new();
        let start = Instant::now();
        let mut ask = |reason, after| limiter.ask(&uid(1), reason, start + after);
        let minute = Duration::from_secs(60);
        assert_eq!(
            ask(EventReason::RoleForbidden, Duration::ZERO),
            Verdict::Allowed
        );
        assert_eq!(ask(EventReason::RoleForbidden, minute), Verdict::Repeat);
        assert_eq!(ask(EventReason::CredentialError, minute), Verdict::Allowed);
        assert_eq!(ask(EventReason::RoleForbidden, minute * 4), Verdict::Repeat);
        assert_eq!(
            ask(EventReason::RoleForbidden, minute * 5),
            Verdict::Allowed
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_pods_together_are_bounded_and_so_is_what_is_kept() {
        let mut limiter = Limiter::new();
        let mut now = Instant::now();
        let mut allowed = 0;
        for number in 0..10_000 {
            now += Duration::from_millis(100);
            let verdict = limiter.ask(&uid(number), EventReason::RoleForbidden, now);
            allowed += u32::from(verdict == Verdict::Allowed);
            assert_ne!(verdict, Verdict::Repeat);
        }
        // 1,000 seconds.
        assert!((1000..=1000 + BURST).contains(&allowed), "{allowed}");
        assert!(
            limiter.told.len() <= 300 + BURST as usize,
            "{}",
            limiter.told.len()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_time_saves_up_no_more_than_a_burst() {
        let mut limiter = Limiter::new();
        let later = Instant::now() + Duration::from_secs(3600);
        let burst = (0..1000)
            .filter(|&number| {
                limiter.ask(&uid(number), EventReason::RoleForbidden, later) == Verdict::Allowed
            })
            .count();
        assert_eq!(burst, BURST as usize);
        let next = limiter.ask(&uid(5000), EventReason::RoleForbidden, later + PERIOD);
        assert_eq!(next, Verdict::Allowed);
    }
}
