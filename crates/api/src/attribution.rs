//! Session attribution: the tags and source identity that identify a workload to AWS, as set in
//! grants and in the configuration.

use rolegate_core::attribution::{self, AttributionRules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The session tags that identify a workload.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkloadTags {
    /// No tags.
    None,
    /// `kubernetes-namespace` and `kubernetes-service-account`.
    Workload,
    /// Adds `kubernetes-pod-name` and `kubernetes-pod-uid`, so each pod gets its own session.
    Pod,
}

/// The source identity of a session.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceIdentity {
    /// No source identity.
    None,
    /// `NAMESPACE.SERVICEACCOUNT`.
    ServiceAccount,
}

/// Defaults for the attribution of sessions.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionDefaults {
    /// Session tags that identify the workload. Defaults to `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadTags")]
    pub workload_tags: Option<WorkloadTags>,
    /// Marks all session tags as transitive, so that they persist through role chaining. Defaults
    /// to `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub transitive_tags: Option<bool>,
    /// The source identity of sessions. Defaults to `none`.
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

impl From<AttributionRules> for SessionDefaults {
    fn from(rules: AttributionRules) -> Self {
        Self {
            workload_tags: rules.tags.map(|tags| match tags {
                attribution::WorkloadTags::None => WorkloadTags::None,
                attribution::WorkloadTags::Workload => WorkloadTags::Workload,
                attribution::WorkloadTags::Pod => WorkloadTags::Pod,
            }),
            transitive_tags: rules.transitive,
            source_identity: rules.source.map(|source| match source {
                attribution::SourceIdentity::None => SourceIdentity::None,
                attribution::SourceIdentity::ServiceAccount => SourceIdentity::ServiceAccount,
            }),
        }
    }
}
