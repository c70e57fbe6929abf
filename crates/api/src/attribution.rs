//! How sessions say whose they are, as grants and the configuration write it.

use rolegate_core::attribution::{self, AttributionRules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which session tags say who a workload is.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkloadTags {
    /// None.
    None,
    /// `kubernetes-namespace` and `kubernetes-service-account`.
    Workload,
    /// Also `kubernetes-pod-name` and `kubernetes-pod-uid`: each pod has a session of its own.
    Pod,
}

/// What a session's source identity is.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceIdentity {
    /// None is sent.
    None,
    /// `NAMESPACE.SERVICEACCOUNT`.
    ServiceAccount,
}

/// How sessions say whose they are.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionDefaults {
    /// Session tags that say who the workload is; `none` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadTags")]
    pub workload_tags: Option<WorkloadTags>,
    /// Whether all tags of a session stay with it through a chain of roles; `false` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub transitive_tags: Option<bool>,
    /// The source identity; `none` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceIdentity")]
    pub source_identity: Option<SourceIdentity>,
}

impl From<SessionDefaults> for AttributionRules {
    fn from(given: SessionDefaults) -> Self {
        Self {
            tags: given.workload_tags.map(|tags| match tags {
                WorkloadTags::None => attribution::WorkloadTags::None,
                WorkloadTags::Workload => attribution::WorkloadTags::Workload,
                WorkloadTags::Pod => attribution::WorkloadTags::Pod,
            }),
            transitive: given.transitive_tags,
            source: given.source_identity.map(|source| match source {
                SourceIdentity::None => attribution::SourceIdentity::None,
                SourceIdentity::ServiceAccount => attribution::SourceIdentity::ServiceAccount,
            }),
        }
    }
}
