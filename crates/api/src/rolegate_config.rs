//! `RolegateConfig`: what must be the same everywhere in a cluster. There is one, named `cluster`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attribution::SessionDefaults;
use crate::condition::Condition;
use crate::demand;

/// The configuration of the rules.
#[derive(
    CustomResource, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "rolegate.dev",
    version = "v1alpha1",
    kind = "RolegateConfig",
    plural = "rolegateconfigs",
    category = "rolegate",
    status = "RolegateConfigStatus",
    derive = "PartialEq",
    doc = "Configures the rules for the whole cluster. Once it is there, everything is refused without it.",
    validation = (
        "self.metadata.name == 'cluster'",
        "there is one RolegateConfig, and its name is cluster: rename this one",
    ),
    printcolumn = r#"{"name": "Namespace", "type": "string", "jsonPath": ".spec.layers.namespace"}"#,
    printcolumn = r#"{"name": "Grants", "type": "string", "jsonPath": ".spec.layers.grants"}"#,
    printcolumn = r#"{"name": "Rego", "type": "string", "jsonPath": ".spec.layers.rego"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolegateConfigSpec {
    /// What completes bare role names: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`. Without it, what
    /// is found out about where rolegate runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 20, max = 2048))]
    pub base_role_arn: Option<String>,
    /// The role of pods that name none, in namespaces that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub default_role: Option<String>,
    /// Roles of the nodes and of rolegate itself, which no pod may have whatever the rules say: an
    /// ARN, or a name, which stands for that role of any account. Agents find out their own node's
    /// beside them; nobody else knows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    pub own_roles: Vec<String>,
    /// Which sources of rules are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// How the roles in namespaces' annotations are written; `glob` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RestrictionFormat")]
    pub namespace_restriction_format: Option<RestrictionFormat>,
    /// What a namespace without annotations allows; `deny` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NamespaceDefault")]
    pub namespace_restrictions_default: Option<NamespaceDefault>,
    /// Names of namespaces whose objects the gate lets through: `kube-system` and `rolegate-system`
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub spared_namespaces: Option<Vec<String>>,
    /// Who may set or change role annotations and granting labels of namespaces, beside the group
    /// `system:masters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_writers: Option<Writers>,
    /// Who may write grants, this configuration and ConfigMaps of policies, beside the group
    /// `system:masters`. Without it, whoever RBAC lets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_writers: Option<Writers>,
    /// Where Rego policies come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rego: Option<Rego>,
    /// A name for the cluster, sent to STS as a tag of every session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub cluster_name: Option<String>,
    /// How sessions say whose they are, where no grant says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionDefaults>,
    /// Custom resources that hold pod templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub workload_kinds: Vec<WorkloadKind>,
    /// Whether the gate keeps pods of ordinary users from choosing their node or tolerating
    /// everything, by which they start before the agent does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guard_scheduling: bool,
    /// Client IDs of the cluster's OIDC providers in IAM, beside those that are known: AWS's own
    /// (`sts.amazonaws.com` and the like), `amazonaws.com` of kOps and `openshift` of ROSA. The gate
    /// judges tokens for these audiences as credentials. The API server's own audience stands for
    /// tokens that are requested without one, and an empty one for those that pods mount so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub web_identity_audiences: Vec<String>,
}

/// The modes of the layers.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Layers {
    /// Annotations of namespaces; `enforce` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub namespace: Option<LayerMode>,
    /// RoleGrants; `off` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub grants: Option<LayerMode>,
    /// Rego policies; `off` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub rego: Option<LayerMode>,
}

/// How much a layer's refusal counts.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerMode {
    /// It refuses.
    Enforce,
    /// It only tells what it would have refused.
    Audit,
    /// It isn't asked.
    Off,
}

/// How roles are written in namespaces' annotations.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestrictionFormat {
    /// `*` stands for any text.
    Glob,
    /// Regular expressions.
    Regexp,
}

/// What a namespace without annotations allows.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NamespaceDefault {
    /// No role.
    Deny,
    /// Every role, as far as this layer goes.
    Allow,
}

/// Users and groups.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Writers {
    /// Users; service accounts are `system:serviceaccount:NAMESPACE:NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub users: Vec<String>,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub groups: Vec<String>,
}

/// Where Rego policies come from, and what they see.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rego {
    /// Namespaces whose ConfigMaps are read: `opa` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Option<Vec<String>>,
    /// The label, as KEY=VALUE, of ConfigMaps that hold policies: `openpolicyagent.org/policy=rego`
    /// unless given; empty for every ConfigMap there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 384))]
    pub label: Option<String>,
    /// Kinds that policies see in `data.kubernetes`, beside namespaces, as [GROUP/]VERSION/RESOURCE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 600)))]
    pub replicate: Vec<String>,
    /// Kinds that policies are asked about at the gate, beside those that make pods, as
    /// [GROUP/]VERSION/RESOURCE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 600)))]
    pub resources: Vec<String>,
    /// ConfigMaps without which everything is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub required: Vec<NameOf>,
    /// Whether policies are also asked about a pod as if a Deployment or the like made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wrap_pods: bool,
}

/// The name of an object in a namespace.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameOf {
    /// The namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A custom resource that holds pod templates: one that is known by a name, or one that is
/// described.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = demand(
    "has(self.preset) ? (!has(self.group) && !has(self.kind) && !has(self.resource) && !has(self.paths) && !has(self.metadataPaths)) : \
     (has(self.group) && has(self.kind) && has(self.resource) && \
     (has(self.paths) && size(self.paths) > 0 || has(self.metadataPaths) && size(self.metadataPaths) > 0))",
    "a workload kind is either a preset alone, or group, kind, resource and paths")))]
pub struct WorkloadKind {
    /// `argo-rollouts`, `argo-workflows`, `jobset`, `knative`, `kruise`, `kubeflow`,
    /// `leaderworkerset`, `openshift`, `ray`, `spark` or `tekton`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preset: Option<String>,
    /// The API group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
    /// The kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// The plural in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub resource: Option<String>,
    /// Dotted paths of pod templates: `*` stands for every entry of a list or map, as in
    /// `spec.replicaSpecs.*.template`, and `.` for the object itself, whose metadata its pods take
    /// over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub paths: Option<Vec<String>>,
    /// Dotted paths of objects with `annotations` and `labels` alone that pods take over, such as
    /// `spec.podMetadata`. Which service account their pods run as is not told there, so grants are
    /// asked when the pods are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub metadata_paths: Option<Vec<String>>,
}

/// How the configuration fares.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolegateConfigStatus {
    /// One of type `Ready`: whether the configuration can be used, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
