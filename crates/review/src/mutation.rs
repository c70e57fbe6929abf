//! Adds AWS web identity (IRSA) or container credentials to a pod, as EKS's pod identity webhook
//! does.
//!
//! The result is a list of RFC 6902 `add` operations for exactly what is added. Lists and objects
//! that the pod has are never replaced, so fields that this program does not know survive. A pod
//! that has everything gets an empty list, so a repeated call (`reinvocationPolicy: IfNeeded`)
//! changes nothing.
//!
//! [`inject`] does not choose the role. [`source`] resolves it from the service account, an
//! association, or the files and ConfigMap of the EKS webhook.

pub mod config_map;
mod container;
mod patch;
mod session;
pub mod settings;
pub mod source;
#[cfg(test)]
mod tests;
mod volume;
mod windows;

use std::collections::BTreeSet;

use rolegate_core::annotation::MIRROR;
use rolegate_core::text::bounded;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::admission_review::Review;
use crate::field_path::{FieldRef, Malformed, StringMap};
use crate::json::{self, Node};
use crate::outcome::{Violation, ViolationSource, patched};
use container::{ContainerPlan, Presence};
pub use patch::AddOperation;
use patch::Pointer;
use session::SessionName;
pub use settings::{AssignedMethod, InjectionSettings, InvalidArn, TokenSettings};
pub use source::{Identity, Method, Resolved, Sources};
use volume::TokenVolume;

/// Label that opts a pod out of the injection. The registration's `objectSelector` evaluates it, and
/// so does the validator.
pub const SKIP_LABEL: &str = "eks.amazonaws.com/skip-pod-identity-webhook";
/// Label of pods with container credentials, set to [`ENABLED`] as EKS's webhook does.
pub const CONTAINER_CREDENTIALS_LABEL: &str = "eks.amazonaws.com/pod-identity";
/// Value of [`CONTAINER_CREDENTIALS_LABEL`].
pub const ENABLED: &str = "enabled";
/// Maximum number of warnings for one pod.
const MAX_WARNINGS: usize = 8;
/// Maximum number of characters of a warning. The API server truncates longer ones.
const MAX_WARNING_CHARS: usize = 250;
/// The lists of containers in a pod's `spec`, except ephemeral ones. Native sidecars are init
/// containers with `restartPolicy: Always`.
const CONTAINER_LISTS: [&str; 2] = ["containers", "initContainers"];
const EPHEMERAL: &str = "ephemeralContainers";

/// The additions to one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mutation {
    /// The additions, in the order in which they must be applied. Empty if the pod is complete.
    pub patch: Vec<AddOperation>,
    /// Sentences for the user that submits the pod.
    pub warnings: Vec<String>,
    /// True if a container gets credentials that it did not have.
    pub gives_credentials: bool,
}

impl Mutation {
    /// Adds a warning, escaped and bounded.
    pub fn warn(&mut self, sentence: &str) {
        let sentence = bounded(sentence, MAX_WARNING_CHARS);
        if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&sentence) {
            self.warnings.push(sentence);
        }
    }

    /// Returns the response to a review: an AdmissionReview as JSON. An empty patch is left out.
    pub fn answer(&self, review: &Review<'_>) -> Vec<u8> {
        let patch = (!self.patch.is_empty()).then(|| {
            // Serialization of JSON values cannot fail.
            serde_json::to_vec(&self.patch).unwrap_or_default()
        });
        patched(review, patch.as_deref(), &self.warnings)
    }

    fn add(&mut self, path: String, value: Value) {
        self.patch.push(AddOperation { path, value });
    }
}

/// A pod as submitted, parsed once.
#[derive(Debug)]
pub struct Pod<'a>(Node<'a>);

impl<'a> Pod<'a> {
    /// Parses a pod.
    ///
    /// # Errors
    /// Returns a sentence if the text is not JSON, or has a duplicate key.
    pub fn parse(pod: &'a RawValue) -> Result<Self, String> {
        json::parse(pod).map(Self)
    }

    /// Returns the service account. The API server replaces an absent name with `default` before it
    /// calls webhooks.
    ///
    /// # Errors
    /// Returns a sentence if the pod cannot be read.
    pub fn service_account(&self) -> Result<&str, String> {
        let spec = FieldRef::root(&self.0).field("spec");
        let account = spec.and_then(|spec| match spec {
            Some(spec) => spec.text("serviceAccountName"),
            None => Ok(None),
        });
        let account = account.map_err(|malformed| sentence(&malformed))?;
        Ok(account.unwrap_or("default"))
    }

    /// Returns true if the pod opts out of the injection by its label, or is the mirror of a static
    /// pod, which the API server stores but the kubelet does not read back.
    pub fn is_skipped(&self) -> bool {
        let has = |map: &str, key: &str| {
            let Node::Map(fields) = &self.0 else {
                return false;
            };
            let Some(Node::Map(metadata)) = fields.get("metadata") else {
                return false;
            };
            matches!(metadata.get(map), Some(Node::Map(map)) if map.get(key).is_some())
        };
        has("labels", SKIP_LABEL) || has("annotations", MIRROR)
    }
}

/// The change of a pod that is being admitted.
#[derive(Debug, Clone, Copy)]
pub struct PodChange<'a> {
    /// The submitted pod.
    pub pod: &'a Pod<'a>,
    /// The existing pod, if ephemeral containers are added to it.
    pub old: Option<&'a Pod<'a>>,
    /// The namespace of the request. A pod's own `metadata.namespace` may be empty.
    pub namespace: &'a str,
    /// A number that spreads the expiration of tokens. Any value is valid.
    pub jitter: u32,
}

/// Returns the additions that give a pod the identity.
///
/// # Errors
/// Returns a sentence if the pod is not a pod.
pub fn inject(
    change: &PodChange<'_>,
    identity: &Identity,
    settings: &InjectionSettings,
) -> Result<Mutation, String> {
    let root = FieldRef::root(&change.pod.0);
    Injector::new(change, &root, identity, settings)
        .and_then(|injector| injector.run(change.old.map(|old| &old.0)))
        .map_err(|malformed| sentence(&malformed))
}

/// Returns the violation of a pod that was admitted without the credentials of its service account:
/// one of its containers would get them.
pub fn missing(
    change: &PodChange<'_>,
    identity: &Identity,
    settings: &InjectionSettings,
) -> Option<Violation> {
    let mutation = inject(change, identity, settings).ok()?;
    mutation.gives_credentials.then(|| {
        Violation::new(
            "spec.containers",
            ViolationSource::Injection,
            "require injection",
            &format!(
                "the service account has an AWS role, but the pod was submitted without its \
                 credentials, because the mutating webhook was not called; create the pod again, or \
                 set label {SKIP_LABEL} if the pod needs no AWS credentials"
            ),
        )
    })
}

fn sentence(malformed: &Malformed) -> String {
    format!("{} must be {}", malformed.path, malformed.wanted)
}

/// The injection into one pod.
struct Injector<'a> {
    identity: &'a Identity,
    settings: &'a InjectionSettings,
    token: &'a TokenSettings,
    spec: FieldRef<'a>,
    labels: StringMap<'a>,
    has_metadata: bool,
    has_labels: bool,
    skipped: BTreeSet<String>,
    is_windows: bool,
    volume: TokenVolume<'a>,
    session: SessionName,
    mutation: Mutation,
}

impl<'a> Injector<'a> {
    fn new(
        change: &PodChange<'_>,
        root: &FieldRef<'a>,
        identity: &'a Identity,
        settings: &'a InjectionSettings,
    ) -> Result<Self, Malformed> {
        let spec = root
            .field("spec")?
            .ok_or_else(|| root.malformed("a pod with a spec"))?;
        let metadata = root.field("metadata")?;
        let (annotations, labels) = match &metadata {
            Some(metadata) => (metadata.texts("annotations")?, metadata.texts("labels")?),
            None => Default::default(),
        };
        let has_labels = match &metadata {
            Some(metadata) => metadata.field("labels")?.is_some(),
            None => false,
        };
        let mut mutation = Mutation::default();
        let key = |name: &str| settings.annotation(name);
        let skipped = match annotations.get(&key("skip-containers")).map(csv_record) {
            None => BTreeSet::new(),
            Some(Some(names)) => names,
            Some(None) => {
                mutation.warn(&format!(
                    "annotation {} is not a list of container names separated by commas, so no \
                     container is skipped",
                    key("skip-containers")
                ));
                BTreeSet::new()
            }
        };
        let text = annotations.get(&key("token-expiration"));
        let own = text.and_then(|text| text.trim().parse().ok());
        if let (Some(text), None) = (text, own) {
            mutation.warn(&format!(
                "annotation {}: {text:?} is not a number of seconds, so the default is used",
                key("token-expiration")
            ));
        }
        let token = match identity.method {
            Method::WebIdentity { .. } => &settings.web_identity,
            Method::ContainerCredentials => &settings.container_credentials,
        };
        let jitter = match identity.method {
            Method::WebIdentity { .. } => None,
            Method::ContainerCredentials => Some(change.jitter),
        };
        let expiration = settings.expiration(own.or(identity.expiration), jitter);
        let audience = identity.audience.as_deref().unwrap_or(&token.audience);
        let (volume, taken) = TokenVolume::find(&spec, token, audience, expiration)?;
        if let Some(taken) = taken {
            mutation.warn(&format!(
                "the pod's volume {taken:?} is not a token for {audience}, so the token is in volume \
                 {:?}",
                volume.name
            ));
        }
        Ok(Self {
            identity,
            settings,
            token,
            labels,
            has_metadata: metadata.is_some(),
            has_labels,
            skipped,
            is_windows: windows::is_windows(&spec)?,
            session: SessionName::of(metadata.as_ref(), change.namespace)?,
            volume,
            spec,
            mutation,
        })
    }

    /// Adds everything. With the existing pod, only what is new in it can change.
    fn run(mut self, old: Option<&Node<'_>>) -> Result<Mutation, Malformed> {
        if let Some(old) = old {
            self.ephemeral(old)?;
            return Ok(self.mutation);
        }
        let mut operations = Vec::new();
        let mut is_mounted = false;
        for list in CONTAINER_LISTS {
            for (index, container) in self.spec.list(list)?.iter().enumerate() {
                let pointer = Pointer::new(&["spec", list]).entry(index);
                is_mounted |= self.container(container, &pointer, &mut operations)?;
            }
        }
        if is_mounted {
            self.label();
            if let Some(operation) = self.volume.operation(&self.spec)? {
                self.mutation.patch.push(operation);
            }
        }
        self.mutation.patch.extend(operations);
        Ok(self.mutation)
    }

    /// Adds the variables to new ephemeral containers. Volumes cannot be added to an existing pod,
    /// so the pod must have the token.
    fn ephemeral(&mut self, old: &Node<'_>) -> Result<(), Malformed> {
        if !self.volume.exists {
            return Ok(());
        }
        let old = match FieldRef::root(old).field("spec")? {
            Some(spec) => {
                let containers = spec.list(EPHEMERAL)?;
                let names = containers
                    .iter()
                    .map(|container| Ok(container.text("name")?.unwrap_or_default().to_owned()));
                names.collect::<Result<BTreeSet<_>, _>>()?
            }
            None => BTreeSet::new(),
        };
        let mut operations = Vec::new();
        for (index, container) in self.spec.list(EPHEMERAL)?.iter().enumerate() {
            if !old.contains(container.text("name")?.unwrap_or_default()) {
                let pointer = Pointer::new(&["spec", EPHEMERAL]).entry(index);
                self.container(container, &pointer, &mut operations)?;
            }
        }
        self.mutation.patch.extend(operations);
        Ok(())
    }

    /// Plans the additions to one container. Returns true if the container mounts the token.
    fn container(
        &mut self,
        container: &FieldRef<'_>,
        pointer: &Pointer,
        operations: &mut Vec<AddOperation>,
    ) -> Result<bool, Malformed> {
        let name = container.text("name")?.unwrap_or_default();
        if self.skipped.contains(name) {
            return Ok(false);
        }
        let presence = Presence::read(container, &self.volume.name)?;
        let plan = ContainerPlan {
            identity: self.identity,
            settings: self.settings,
            token: self.token,
            is_windows: self.is_windows,
            volume: &self.volume.name,
            session: &self.session,
        };
        let additions = plan.additions(&presence);
        self.mutation.gives_credentials |= additions.gives_credentials;
        for warning in additions.warnings {
            self.mutation
                .warn(&format!("container {name:?}: {warning}"));
        }
        pointer.append(operations, "env", presence.has_env, additions.env);
        let mounts = additions.mount.into_iter().collect();
        pointer.append(operations, "volumeMounts", presence.has_mounts, mounts);
        Ok(additions.is_mounted)
    }

    fn label(&mut self) {
        if self.identity.method != Method::ContainerCredentials
            || !self.has_metadata
            || self.labels.get(CONTAINER_CREDENTIALS_LABEL).is_some()
        {
            return;
        }
        if self.has_labels {
            let path = Pointer::new(&["metadata", "labels", CONTAINER_CREDENTIALS_LABEL]);
            self.mutation.add(path.into(), ENABLED.into());
        } else {
            let labels = json!({CONTAINER_CREDENTIALS_LABEL: ENABLED});
            let path = Pointer::new(&["metadata", "labels"]);
            self.mutation.add(path.into(), labels);
        }
    }
}

/// Reads one CSV record of container names. Blanks around names are ignored, since no container name
/// has any. `None` if quotes are not balanced.
fn csv_record(text: &str) -> Option<BTreeSet<String>> {
    let record = text.lines().find(|line| !line.trim().is_empty());
    let fields = record.unwrap_or_default().split(',').map(|field| {
        let field = field.trim();
        let inner = match field.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"')?,
            None => field,
        };
        (!inner.contains('"')).then(|| inner.to_owned())
    });
    let mut names = fields.collect::<Option<BTreeSet<_>>>()?;
    names.remove("");
    Some(names)
}
