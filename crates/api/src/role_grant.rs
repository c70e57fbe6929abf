//! `RoleGrant`: the roles that an administrator grants to workloads, cluster-wide.

use std::collections::BTreeMap;

use kube::{CustomResource, ResourceExt};
use rolegate_core::grant::{self, Grant};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attribution::{SessionDefaults, SourceIdentity, WorkloadTags};
use crate::condition::Condition;
use crate::selector::LabelSelector;
use crate::{text, texts, validation};

/// Roles, the workloads that may assume them, and the settings of their sessions.
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
    doc = "Grants AWS roles to workloads. Roles not covered by a RoleGrant are denied.",
    printcolumn = r#"{"name": "Roles", "type": "string", "jsonPath": ".spec.roles"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name": "Workloads", "type": "integer", "jsonPath": ".status.workloads"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = content_validations()))]
pub struct RoleGrantSpec {
    /// Granted roles: names or ARNs. `*` matches any text, including slashes. Required unless the
    /// grant has associations only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    pub roles: Vec<String>,
    /// Workloads that may assume the roles. A workload must match at least one subject. Required
    /// unless the grant has associations only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub subjects: Vec<Subject>,
    /// Associations of roles with service accounts, for container credentials and web identity. An
    /// association also grants its role to its service accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub associations: Vec<Association>,
    /// External IDs that the workloads may pass to STS. If empty, none are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 1224)))]
    pub external_ids: Vec<String>,
    /// Settings of the workloads' sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Associates a role with service accounts, as an association of EKS Pod Identity does. Of several
/// associations of a service account, the most precise one applies: an exact name before a name
/// with `*`, first by namespace, then by service account.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Association {
    /// The namespace. `*` matches any text.
    #[schemars(length(min = 1, max = 253))]
    pub namespace: String,
    /// The service account. `*` matches any text.
    #[schemars(length(min = 1, max = 253))]
    pub service_account: String,
    /// The role: a name or an ARN.
    #[schemars(length(min = 1, max = 2048))]
    #[schemars(extend("x-kubernetes-validations" = validation(
        "!self.contains('*')", "an association has exactly one role: write it without *")))]
    pub role: String,
    /// The audience of the tokens that get the role, for a container with a role and a token of its
    /// own. Defaults to the audience of container credentials. Annotations of the service account
    /// take precedence over associations without an audience.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 253))]
    #[schemars(extend("x-kubernetes-validations" = validation(
        "!(self in ['pods.eks.amazonaws.com', 'sts.amazonaws.com'])",
        "leave audience out for the default audience; sts.amazonaws.com is that of tokens for STS \
         itself")))]
    pub audience: Option<String>,
    /// A role that is assumed with the credentials of `role`; the pods get its credentials. Its
    /// sessions last one hour at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 2048))]
    #[schemars(extend("x-kubernetes-validations" = validation(
        "!self.contains('*')", "an association has exactly one target role: write it without *")))]
    pub target_role: Option<String>,
    /// The external ID that the trust policy of the target role requires, or that of `role` without a
    /// target role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 2, max = 1224))]
    pub external_id: Option<String>,
}

/// Selects workloads. A workload must match every field that is set.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = validation(
    "(has(self.namespaces) && size(self.namespaces) > 0) || has(self.namespaceSelector)",
    "a subject needs namespaces or a namespaceSelector; namespaces: [\"*\"] means all")))]
pub struct Subject {
    /// Names of namespaces. `*` matches any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub namespaces: Vec<String>,
    /// Label selector for the namespace. Any user who may set these labels on a namespace can give
    /// the roles to its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Names of service accounts. `*` matches any text. If empty, all service accounts match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub service_accounts: Vec<String>,
    /// Label selector for the pod. This is not a security boundary, since users who create pods
    /// choose their labels; it only prevents mistakes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// Settings of sessions.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Session {
    /// Session duration, in seconds: 900 to 43200. Defaults to `--session-duration` of the agents or
    /// brokers. If they call STS with an assumed role, at most 3600 is requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = validation(
        "self >= 900 && self <= 43200",
        "must be 900 to 43200 seconds and at most the role's maximum session duration")))]
    pub duration_seconds: Option<i32>,
    /// Session tags, which policies in AWS can check, in addition to the workload tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "tags")]
    pub tags: BTreeMap<String, String>,
    /// Session tags that identify the workload. Defaults to the RolegateConfig's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadTags")]
    pub workload_tags: Option<WorkloadTags>,
    /// Marks all session tags as transitive, so that they persist through role chaining. Defaults
    /// to the RolegateConfig's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub transitive_tags: Option<bool>,
    /// The source identity of the sessions. Defaults to the RolegateConfig's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceIdentity")]
    pub source_identity: Option<SourceIdentity>,
    /// ARNs of managed policies that restrict the sessions' permissions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(min = 20, max = 2048)))]
    pub policy_arns: Vec<String>,
    /// Session policy: a JSON policy document that restricts the sessions' permissions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub policy: String,
    /// Session names that pods may request. `*` matches any text. If empty, names that begin with
    /// the pod's namespace are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64)))]
    pub names: Vec<String>,
}

/// The observed state of a grant.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleGrantStatus {
    /// The `Ready` condition: states whether the grant is in effect, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Number of live workloads that the grant covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<i64>,
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Returns the CEL rules that a grant has a role and a subject, unless it has associations only.
fn content_validations() -> Value {
    let missing = |field: &str, other: &str| {
        format!(
            "(has(self.{field}) && size(self.{field}) > 0) || (has(self.associations) && \
             size(self.associations) > 0 && !(has(self.{other}) && size(self.{other}) > 0))"
        )
    };
    json!([
        {
            "rule": missing("roles", "subjects"),
            "message": "spec.roles is empty: name at least one role, such as \"payments-*\"",
        },
        {
            "rule": missing("subjects", "roles"),
            "message": "spec.subjects is empty: name at least one subject; an empty list does not \
                        mean all workloads",
        },
    ])
}

/// The CEL rule covers lower case only: keys have no maximum length, so the API server could not
/// bound the cost of more. Other spellings are rejected when the grant is compiled.
fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": grant::MAX_TAGS,
        "additionalProperties": {"type": "string", "maxLength": 256},
        "x-kubernetes-validations": validation(
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
            associations: spec.associations.iter().map(Into::into).collect(),
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

impl From<&Association> for grant::Association {
    fn from(association: &Association) -> Self {
        let optional = |value: &Option<String>| value.as_deref().map(text);
        Self {
            namespace: text(&association.namespace),
            service_account: text(&association.service_account),
            role: text(&association.role),
            audience: optional(&association.audience),
            target_role: optional(&association.target_role),
            external_id: optional(&association.external_id),
        }
    }
}

impl From<&grant::Association> for Association {
    fn from(association: &grant::Association) -> Self {
        Self {
            namespace: association.namespace.clone(),
            service_account: association.service_account.clone(),
            role: association.role.clone(),
            audience: association.audience.clone(),
            target_role: association.target_role.clone(),
            external_id: association.external_id.clone(),
        }
    }
}

impl From<&Session> for grant::SessionRules {
    fn from(session: &Session) -> Self {
        Self {
            // Negative values become zero, which compiling the grant rejects.
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

impl From<&Grant> for RoleGrant {
    /// Writes the grant as an administrator would.
    fn from(grant: &Grant) -> Self {
        let session = &grant.session;
        let spec = RoleGrantSpec {
            roles: grant.roles.clone(),
            subjects: grant.subjects.iter().map(Into::into).collect(),
            external_ids: grant.external_ids.clone(),
            associations: grant.associations.iter().map(Into::into).collect(),
            session: (*session != grant::SessionRules::default()).then(|| session.into()),
        };
        Self::new(&grant.name, spec)
    }
}

impl From<&grant::Subject> for Subject {
    fn from(subject: &grant::Subject) -> Self {
        Self {
            namespaces: subject.namespaces.clone(),
            namespace_selector: subject.namespace_selector.as_ref().map(Into::into),
            service_accounts: subject.service_accounts.clone(),
            pod_selector: subject.pod_selector.as_ref().map(Into::into),
        }
    }
}

impl From<&grant::SessionRules> for Session {
    fn from(session: &grant::SessionRules) -> Self {
        let SessionDefaults {
            workload_tags,
            transitive_tags,
            source_identity,
        } = session.attribution.into();
        Self {
            // STS's limit is far below the largest value.
            duration_seconds: session
                .duration_seconds
                .map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX)),
            tags: session.tags.clone(),
            workload_tags,
            transitive_tags,
            source_identity,
            policy_arns: session.policy_arns.clone(),
            policy: session.policy.clone(),
            names: session.names.clone(),
        }
    }
}
