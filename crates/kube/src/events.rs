//! Events on pods, so that `kubectl describe pod` tells its owner why it gets no credentials, and
//! on grants, the configuration and ConfigMaps of policies that can't be used.
//!
//! They are a courtesy and never in the way: whoever reports one doesn't wait, an object's repeats are
//! dropped, and so is what comes faster than an API server should be bothered.

mod limiter;

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
use limiter::{Limiter, Verdict};

/// Events that wait to be written.
const QUEUE: usize = 64;
/// The most bytes of a message; the API server takes 1,024.
const LONGEST: usize = 1000;
/// How long the API server may take for one.
const WRITE: Duration = Duration::from_secs(10);
/// The version of our own kinds.
const API_VERSION: &str = "rolegate.dev/v1alpha1";

/// What an Event is about; its `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// The pod may not have the role it asks for.
    RoleForbidden,
    /// The pod may have the role, but there are no credentials for it.
    CredentialError,
    /// A policy or its data can't be used as it is written.
    PolicyInvalid,
    /// A grant can't be used as it is written, so it grants nothing.
    GrantInvalid,
    /// The configuration can't be used as it is written.
    ConfigurationInvalid,
}

impl EventReason {
    /// As Kubernetes shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "RoleForbidden",
            Self::CredentialError => "CredentialError",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::GrantInvalid => "GrantInvalid",
            Self::ConfigurationInvalid => "ConfigurationInvalid",
        }
    }

    /// What was being done.
    fn action(self) -> &'static str {
        match self {
            Self::RoleForbidden | Self::CredentialError => "GetCredentials",
            Self::PolicyInvalid => "LoadPolicy",
            Self::GrantInvalid => "LoadGrant",
            Self::ConfigurationInvalid => "LoadConfiguration",
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

/// Both ends, for the agent and the pods of its node. `instance` names who reports, as in the name
/// of the node. Registers `kube_events_total` by `outcome`: `written`, `failed`, `dropped` (limits
/// or a full queue; an object's repeats are not counted).
pub fn eventer(
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (Eventer, EventWriter) {
    ends(
        "rolegate-agent",
        client,
        instance,
        Limiter::of_node(),
        registry,
    )
}

/// Both ends, as [`eventer`], for a part of rolegate that tells all namespaces of a cluster;
/// `controller` is its name. One namespace's Events don't use up those of the others.
pub fn eventer_as(
    controller: &'static str,
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (Eventer, EventWriter) {
    ends(
        controller,
        client,
        instance,
        Limiter::of_cluster(),
        registry,
    )
}

fn ends(
    controller: &'static str,
    client: Client,
    instance: String,
    limiter: Limiter,
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
        limiter: Arc::new(Mutex::new(limiter)),
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

/// An object of ours that holds rules.
#[derive(Debug, Clone, Copy)]
pub struct RuleObject<'a> {
    /// Its kind.
    pub kind: RuleKind,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a Arc<str>,
}

/// A kind of ours that holds rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// A grant.
    RoleGrant,
    /// The configuration.
    RolegateConfig,
}

/// The object that an Event is about.
#[derive(Clone, Copy)]
struct About<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// `None` for an object of the cluster.
    namespace: Option<&'a Arc<str>>,
    name: &'a str,
    uid: &'a Arc<str>,
}

impl From<About<'_>> for ObjectReference {
    fn from(about: About<'_>) -> Self {
        Self {
            api_version: Some(about.api_version.into()),
            kind: Some(about.kind.into()),
            namespace: about.namespace.map(ToString::to_string),
            name: Some(about.name.into()),
            uid: Some(about.uid.to_string()),
            ..Self::default()
        }
    }
}

impl Eventer {
    /// Tells the owner of `pod`. Returns at once, and may drop it.
    pub fn tell(&self, pod: &Workload, reason: EventReason, message: &str) {
        let about = About {
            api_version: "v1",
            kind: "Pod",
            namespace: Some(&pod.namespace),
            name: &pod.name,
            uid: &pod.uid,
        };
        self.offer(about, reason, message);
    }

    /// Tells whoever wrote `map`. Returns at once, and may drop it.
    pub fn tell_policy(&self, map: &ConfigMap, message: &str) {
        let about = About {
            api_version: "v1",
            kind: "ConfigMap",
            namespace: Some(&map.namespace),
            name: &map.name,
            uid: &map.uid,
        };
        self.offer(about, EventReason::PolicyInvalid, message);
    }

    /// Reports why a grant or the configuration cannot be used. Returns at once, and may drop it.
    pub fn report_invalid_rule(&self, object: RuleObject<'_>, message: &str) {
        let (kind, reason) = match object.kind {
            RuleKind::RoleGrant => ("RoleGrant", EventReason::GrantInvalid),
            RuleKind::RolegateConfig => ("RolegateConfig", EventReason::ConfigurationInvalid),
        };
        let about = About {
            api_version: API_VERSION,
            kind,
            namespace: None,
            name: object.name,
            uid: object.uid,
        };
        self.offer(about, reason, message);
    }

    fn offer(&self, about: About<'_>, reason: EventReason, message: &str) {
        let cluster: Arc<str> = "".into();
        let namespace = about.namespace.unwrap_or(&cluster);
        let verdict = self
            .limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ask(about.uid, namespace, reason, Instant::now());
        let sent = match verdict {
            Verdict::Repeat => return,
            Verdict::TooMany => false,
            Verdict::Allowed => {
                let event = ObjectEvent {
                    about: about.into(),
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
                        tracing::warn!(reason = sentence, "cannot write Events");
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
