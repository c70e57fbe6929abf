//! `AWS_ROLE_SESSION_NAME`: a name that stays the same across renewals, so that CloudTrail shows the
//! pod. Without it SDKs choose a random or time-based name.

use rolegate_core::session_name::fit;
use serde_json::{Value, json};

use crate::field_path::{FieldRef, Malformed};

pub(super) const SESSION_NAME: &str = "AWS_ROLE_SESSION_NAME";
/// Variable with the pod's name, which the value of [`SESSION_NAME`] references.
pub(super) const POD_NAME: &str = "ROLEGATE_POD_NAME";
/// Maximum length of a session name in STS, in characters.
const MAX_CHARS: usize = 64;
/// Maximum length of the part of `metadata.generateName` that the API server keeps, in characters.
const MAX_KEPT_CHARS: usize = 58;
/// Length of the suffix that the API server generates, in characters.
const SUFFIX_CHARS: usize = 5;

/// The session name of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionName {
    /// The pod's name is known.
    Literal(String),
    /// The API server will generate the pod's name. The kubelet completes this prefix with it.
    Generated(String),
}

impl SessionName {
    /// Returns the session name `NAMESPACE.POD`, shortened if STS would reject it. A literal name then
    /// ends in a hash, and a generated one keeps the whole name of the pod.
    pub(super) fn of(metadata: Option<&FieldRef<'_>>, namespace: &str) -> Result<Self, Malformed> {
        let Some(metadata) = metadata else {
            return Ok(Self::Generated(String::new()));
        };
        if let Some(name) = metadata.text("name")? {
            return Ok(Self::Literal(fit(&format!("{namespace}.{name}"))));
        }
        let base = metadata.text("generateName")?.unwrap_or_default();
        let pod = base.len().min(MAX_KEPT_CHARS) + SUFFIX_CHARS;
        let room = MAX_CHARS.saturating_sub(pod + 1);
        let namespace = namespace
            .get(..room.min(namespace.len()))
            .unwrap_or_default();
        Ok(Self::Generated(if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}.")
        }))
    }

    /// Returns the variables. The first ones are referenced by the last one.
    pub(super) fn variables(&self, has_pod_name: bool) -> Vec<Value> {
        match self {
            Self::Literal(name) => vec![json!({"name": SESSION_NAME, "value": name})],
            // The variable is the container's own and may have any value.
            Self::Generated(_) if has_pod_name => Vec::new(),
            Self::Generated(prefix) => vec![
                json!({"name": POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
                json!({"name": SESSION_NAME, "value": format!("{prefix}$({POD_NAME})")}),
            ],
        }
    }
}
