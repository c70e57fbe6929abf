//! Events on pods, so that `kubectl describe pod` shows why a pod gets no credentials, and on
//! grants, the configuration and policy ConfigMaps that are invalid.
//!
//! Events are best effort. Recording never waits; repeats are dropped, and so are Events above the
//! rate limits.

mod limiter;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::workload::Workload;
use rolegate_runtime::logging;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config_maps::ConfigMap;
use crate::error::Failure;
use limiter::{Limiter, Verdict};

/// Capacity of the queue of Events.
const QUEUE_SIZE: usize = 64;
/// Maximum size of a message, in bytes. The API server's limit is 1,024.
const MAX_MESSAGE_BYTES: usize = 1000;
/// Timeout for writing an Event.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// API version of our custom resources.
const API_VERSION: &str = "rolegate.dev/v1alpha1";

/// The reason of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// The pod may not have the role it requests.
    RoleForbidden,
    /// The pod may have the role, but there are no credentials for it.
    CredentialError,
    /// A policy or its data is invalid.
    PolicyInvalid,
    /// A grant is invalid, so it grants nothing.
    GrantInvalid,
    /// The configuration is invalid.
    ConfigurationInvalid,
    /// Pods run without the role of their service account.
    RoleNotInjected,
}

impl EventReason {
    /// Returns the value of the Event's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoleForbidden => "RoleForbidden",
            Self::CredentialError => "CredentialError",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::GrantInvalid => "GrantInvalid",
            Self::ConfigurationInvalid => "ConfigurationInvalid",
            Self::RoleNotInjected => "RoleNotInjected",
        }
    }

    /// Returns the value of the Event's `action`.
    fn action(self) -> &'static str {
        match self {
            Self::RoleForbidden | Self::CredentialError => "GetCredentials",
            Self::PolicyInvalid => "LoadPolicy",
            Self::GrantInvalid => "LoadGrant",
            Self::ConfigurationInvalid => "LoadConfiguration",
            Self::RoleNotInjected => "InjectRole",
        }
    }
}

type Outcome = [(&'static str, &'static str); 1];

/// Queues Events. Cloning is cheap; clones share state.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<ObjectEvent>,
    limiter: Arc<Mutex<Limiter>>,
    outcomes: Family<Outcome, Counter>,
}

impl fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRecorder").finish_non_exhaustive()
    }
}

/// Writes queued Events. Run it until it ends, which it does with the last [`EventRecorder`].
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

/// Creates a recorder and its writer for the agent and the pods of its node. `instance` is the
/// reporting instance, such as the node's name. Registers `kube_events_total` by `outcome`:
/// `written`, `failed`, `dropped` (rate limits or a full queue; repeats are not counted).
pub fn recorder(
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (EventRecorder, EventWriter) {
    ends(
        "rolegate-agent",
        client,
        instance,
        Limiter::for_node(),
        registry,
    )
}

/// Creates a recorder and its writer as [`recorder`] does, for a component that reports to all
/// namespaces of a cluster; `controller` is its name. Each namespace has its own rate limit.
pub fn recorder_as(
    controller: &'static str,
    client: Client,
    instance: String,
    registry: &mut Registry,
) -> (EventRecorder, EventWriter) {
    ends(
        controller,
        client,
        instance,
        Limiter::for_cluster(),
        registry,
    )
}

fn ends(
    controller: &'static str,
    client: Client,
    instance: String,
    limiter: Limiter,
    registry: &mut Registry,
) -> (EventRecorder, EventWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE_SIZE);
    let outcomes = Family::<Outcome, Counter>::default();
    for outcome in ["written", "failed", "dropped"] {
        // Creates the series with the value zero.
        drop(outcomes.get_or_create(&[("outcome", outcome)]));
    }
    registry.register("kube_events", "Events on objects", outcomes.clone());
    let recorder = EventRecorder {
        queue: sender,
        limiter: Arc::new(Mutex::new(limiter)),
        outcomes: outcomes.clone(),
    };
    let reporter = Reporter {
        controller: controller.into(),
        instance: Some(instance),
    };
    (
        recorder,
        EventWriter {
            queue: receiver,
            client,
            reporter,
            outcomes,
        },
    )
}

/// One of our custom resources that hold rules.
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
    /// The cluster's configuration.
    RolegateConfig,
}

/// The object that an Event regards.
#[derive(Clone, Copy)]
struct Regarding<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// `None` for a cluster-scoped object.
    namespace: Option<&'a Arc<str>>,
    name: &'a str,
    uid: &'a Arc<str>,
}

impl From<Regarding<'_>> for ObjectReference {
    fn from(about: Regarding<'_>) -> Self {
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

impl EventRecorder {
    /// Records an Event on `pod`. Never waits, and may drop it.
    pub fn publish(&self, pod: &Workload, reason: EventReason, message: &str) {
        let about = Regarding {
            api_version: "v1",
            kind: "Pod",
            namespace: Some(&pod.namespace),
            name: &pod.name,
            uid: &pod.uid,
        };
        self.offer(about, reason, message);
    }

    /// Records an Event on a policy's ConfigMap. Never waits, and may drop it.
    pub fn report_invalid_policy(&self, map: &ConfigMap, message: &str) {
        let about = Regarding {
            api_version: "v1",
            kind: "ConfigMap",
            namespace: Some(&map.namespace),
            name: &map.name,
            uid: &map.uid,
        };
        self.offer(about, EventReason::PolicyInvalid, message);
    }

    /// Records why a grant or the configuration cannot be used. Never waits, and may drop it.
    pub fn report_invalid_rule(&self, object: RuleObject<'_>, message: &str) {
        let (kind, reason) = match object.kind {
            RuleKind::RoleGrant => ("RoleGrant", EventReason::GrantInvalid),
            RuleKind::RolegateConfig => ("RolegateConfig", EventReason::ConfigurationInvalid),
        };
        let about = Regarding {
            api_version: API_VERSION,
            kind,
            namespace: None,
            name: object.name,
            uid: object.uid,
        };
        self.offer(about, reason, message);
    }

    /// Records that pods run without the role of a service account. Never waits, and may drop it.
    pub fn report_missing_injection(
        &self,
        (namespace, name, uid): (&Arc<str>, &str, &Arc<str>),
        message: &str,
    ) {
        let about = Regarding {
            api_version: "v1",
            kind: "ServiceAccount",
            namespace: Some(namespace),
            name,
            uid,
        };
        self.offer(about, EventReason::RoleNotInjected, message);
    }

    fn offer(&self, about: Regarding<'_>, reason: EventReason, message: &str) {
        let cluster: Arc<str> = "".into();
        let namespace = about.namespace.unwrap_or(&cluster);
        let verdict = self
            .limiter
            .lock()
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

/// Returns the message on one line, truncated to the API server's limit.
fn bounded(message: &str) -> String {
    // Escaping only lengthens the text, so the rest need not be escaped.
    let head = message
        .get(..message.floor_char_boundary(MAX_MESSAGE_BYTES))
        .unwrap_or(message);
    let mut text = logging::escape(head);
    text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
    text
}

impl EventWriter {
    /// Writes queued Events in order.
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
        // A long-lived recorder aggregates repeats under the first message, which may be outdated;
        // a new one does not.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let content = Event {
            type_: EventType::Warning,
            reason: event.reason.as_str().into(),
            note: Some(event.message),
            action: event.reason.action().into(),
            secondary: None,
        };
        match tokio::time::timeout(WRITE_TIMEOUT, recorder.publish(&content, &event.about)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::of_call(&error)),
            Err(_) => Err(Failure::no_answer(WRITE_TIMEOUT)),
        }
    }
}
