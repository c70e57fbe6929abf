//! `RoleGrant`: which workloads may have which roles, given by an administrator for the whole
//! cluster.

use std::collections::BTreeMap;

use kube::{CustomResource, ResourceExt};
use rolegate_core::grant::{self, Grant};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::attribution::{SessionDefaults, SourceIdentity, WorkloadTags};
use crate::condition::Condition;
use crate::selector::LabelSelector;
use crate::{demand, text, texts};

/// Which workloads may have which roles, and what their sessions are like.
#[derive(
    CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "rolegate.dev",
    version = "v1alpha1",
    kind = "RoleGrant",
    plural = "rolegrants",
    shortname = "rg",
    category = "rolegate",
    status = "RoleGrantStatus",
    derive = "PartialEq",
    doc = "Gives AWS roles to workloads. Nothing is given that no grant names.",
    printcolumn = r#"{"name": "Roles", "type": "string", "jsonPath": ".spec.roles"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name": "Workloads", "type": "integer", "jsonPath": ".status.workloads"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleGrantSpec {
    /// The roles: names or ARNs, `*` stands for any text, slashes included.
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    #[schemars(extend("x-kubernetes-validations" = demand(
        "size(self) > 0",
        "spec.roles is empty: name at least one role, such as \"payments-*\"")))]
    pub roles: Vec<String>,
    /// Who may have them: whoever matches any of these.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-validations" = demand(
        "size(self) > 0",
        "spec.subjects is empty: name at least one subject; a grant to nobody is no grant to everyone")))]
    pub subjects: Vec<Subject>,
    /// External IDs that these workloads may pass to STS. Without any, none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 1224)))]
    pub external_ids: Vec<String>,
    /// What their sessions are like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Some workloads: everything that is given must match.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = demand(
    "(has(self.namespaces) && size(self.namespaces) > 0) || has(self.namespaceSelector)",
    "a subject needs namespaces or a namespaceSelector; namespaces: [\"*\"] means all")))]
pub struct Subject {
    /// Names of namespaces, `*` stands for any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub namespaces: Vec<String>,
    /// Labels of the namespace. Whoever may set them gives the roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Names of service accounts, `*` stands for any text. Without any, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub service_accounts: Vec<String>,
    /// Labels of the pod. Whoever may create pods chooses them: no boundary, but a help against
    /// mistakes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// What sessions are like.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Session {
    /// How long a session lives, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = demand(
        "self >= 900 && self <= 43200",
        "STS takes 900 to 43200 seconds, and no more than the role's maximum session duration")))]
    pub duration_seconds: Option<i32>,
    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "tags")]
    pub tags: BTreeMap<String, String>,
    /// Session tags that say who the workload is; as the configuration says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadTags")]
    pub workload_tags: Option<WorkloadTags>,
    /// Whether all tags stay with the session through a chain of roles; as the configuration says
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub transitive_tags: Option<bool>,
    /// The source identity; as the configuration says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceIdentity")]
    pub source_identity: Option<SourceIdentity>,
    /// ARNs of managed policies that narrow the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(min = 20, max = 2048)))]
    pub policy_arns: Vec<String>,
    /// A policy document (JSON) that narrows the session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub policy: String,
    /// Session names that pods may choose, `*` stands for any text. Without any, those that begin
    /// with the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64)))]
    pub names: Vec<String>,
}

/// How a grant fares.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleGrantStatus {
    /// One of type `Ready`: whether the grant counts, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// How many live workloads it covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<i64>,
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The rule is about lower case alone, for the API server has to bound its cost and keys have no
/// bound; other spellings are refused when the grant is compiled.
fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": grant::MAX_TAGS,
        "additionalProperties": {"type": "string", "maxLength": 256},
        "x-kubernetes-validations": demand(
            "self.all(key, !key.startsWith('rolegate.dev/') && !key.startsWith('aws:') && \
             !key.startsWith('eks-') && !key.startsWith('kubernetes-'))",
            "tags that begin with rolegate.dev/, aws:, eks- or kubernetes- are reserved: choose \
             another key",
        ),
    })
}

impl From<&RoleGrant> for Grant {
    fn from(object: &RoleGrant) -> Self {
        let spec = &object.spec;
        Self {
            name: object.name_any().into(),
            generation: object.metadata.generation,
            roles: texts(&spec.roles),
            subjects: spec.subjects.iter().map(Into::into).collect(),
            external_ids: texts(&spec.external_ids),
            session: spec.session.as_ref().map(Into::into).unwrap_or_default(),
            ..Self::default()
        }
    }
}

impl From<&Subject> for grant::Subject {
    fn from(subject: &Subject) -> Self {
        Self {
            namespaces: texts(&subject.namespaces),
            namespace_selector: subject.namespace_selector.as_ref().map(Into::into),
            service_accounts: texts(&subject.service_accounts),
            pod_selector: subject.pod_selector.as_ref().map(Into::into),
        }
    }
}

impl From<&Session> for grant::SessionRules {
    fn from(session: &Session) -> Self {
        Self {
            // A negative one is as wrong as zero, which is told when the grant is compiled.
            duration_seconds: session
                .duration_seconds
                .map(|seconds| u32::try_from(seconds).unwrap_or(0)),
            tags: session.tags.clone(),
            attribution: SessionDefaults {
                workload_tags: session.workload_tags,
                transitive_tags: session.transitive_tags,
                source_identity: session.source_identity,
            }
            .into(),
            policy_arns: texts(&session.policy_arns),
            policy: text(&session.policy),
            names: texts(&session.names),
        }
    }
}
