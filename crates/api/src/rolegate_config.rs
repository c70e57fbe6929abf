//! `RolegateConfig`: settings that must be the same everywhere in a cluster. The only object is
//! named `cluster`.

use kube::CustomResource;
use rolegate_core::config::Modes;
use rolegate_core::layer::LayerId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attribution::SessionDefaults;
use crate::condition::Condition;
use crate::validation;

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
    doc = "Configures the rules for the whole cluster. Once this object exists, deleting it \
           denies all requests.",
    validation = (
        "self.metadata.name == 'cluster'",
        "the only RolegateConfig of a cluster must be named cluster: rename this one",
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
    /// Prefix that completes bare role names: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`. Defaults
    /// to the account and partition that rolegate detects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 20, max = 2048))]
    pub base_role_arn: Option<String>,
    /// Role for pods that request none, in namespaces that set no default role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub default_role: Option<String>,
    /// Roles of the nodes and of rolegate itself, which are denied to every pod regardless of the
    /// rules. Each is an ARN, or a name that matches roles of that name in any account. Agents also
    /// reserve the role of their own node, which they detect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    pub reserved_roles: Vec<String>,
    /// Modes of the rule layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Format of role restrictions in namespace annotations. Defaults to `glob`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RestrictionFormat")]
    pub namespace_restriction_format: Option<RestrictionFormat>,
    /// Verdict of layer `namespace` for namespaces without annotations about roles. Defaults to
    /// `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NamespaceDefault")]
    pub namespace_restrictions_default: Option<NamespaceDefault>,
    /// Namespaces whose objects the admission webhook admits without validation. Defaults to
    /// `kube-system` and `rolegate-system`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub exempt_namespaces: Option<Vec<String>>,
    /// Users and groups that may set or change a namespace's role annotations and the labels that
    /// grants select, in addition to the group `system:masters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_writers: Option<Writers>,
    /// Users and groups that may write grants, this configuration and policy ConfigMaps, in
    /// addition to the group `system:masters`. If unset, RBAC alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_writers: Option<Writers>,
    /// Sources and inputs of Rego policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rego: Option<Rego>,
    /// Name of the cluster, sent to STS as the session tag `eks-cluster-name`. The trust policy of
    /// every role must then allow `sts:TagSession`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub cluster_name: Option<String>,
    /// Attribution of sessions, unless a grant overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionDefaults>,
    /// Custom resources that contain pod templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub workload_kinds: Vec<WorkloadKind>,
    /// Prevents unprivileged users from creating pods that select their node or tolerate all taints,
    /// since such pods can start before the agent runs on the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guard_scheduling: bool,
    /// Additional OIDC client IDs (audiences) that IAM accepts from the cluster. rolegate knows
    /// AWS's own (such as `sts.amazonaws.com`), kOps' `amazonaws.com` and ROSA's `openshift`. The
    /// admission webhook treats tokens for these audiences as AWS credentials. List the API
    /// server's own audience to cover tokens requested without an audience, and an empty string to
    /// cover projected tokens mounted without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub web_identity_audiences: Vec<String>,
}

/// Modes of the rule layers.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Layers {
    /// Mode of layer `namespace`: the annotations of namespaces. Defaults to `enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub namespace: Option<LayerMode>,
    /// Mode of layer `grants`: RoleGrants. Defaults to `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub grants: Option<LayerMode>,
    /// Mode of layer `rego`: Rego policies. Defaults to `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LayerMode")]
    pub rego: Option<LayerMode>,
}

impl Layers {
    /// Returns the mode of a layer, if it is set.
    pub fn get(&self, layer: LayerId) -> Option<LayerMode> {
        match layer {
            LayerId::Namespace => self.namespace,
            LayerId::Grants => self.grants,
            LayerId::Rego => self.rego,
        }
    }
}

impl From<Modes> for Layers {
    fn from(modes: Modes) -> Self {
        let mode = |layer| Some(modes[layer].into());
        Self {
            namespace: mode(LayerId::Namespace),
            grants: mode(LayerId::Grants),
            rego: mode(LayerId::Rego),
        }
    }
}

/// The effect of a layer's denials.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerMode {
    /// Denials take effect.
    Enforce,
    /// Denials are only recorded.
    Audit,
    /// The layer is not evaluated.
    Off,
}

/// Format of role restrictions in namespace annotations.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestrictionFormat {
    /// Globs: `*` matches any text.
    Glob,
    /// Regular expressions.
    Regexp,
}

/// Verdict for a namespace without annotations about roles.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NamespaceDefault {
    /// Denies every role.
    Deny,
    /// Allows every role; other layers can still deny it.
    Allow,
}

/// Users and groups.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Writers {
    /// User names. A service account is `system:serviceaccount:NAMESPACE:NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub users: Vec<String>,
    /// Group names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub groups: Vec<String>,
}

/// Sources and inputs of Rego policies.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rego {
    /// Namespaces whose ConfigMaps are read. Defaults to `opa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub namespaces: Option<Vec<String>>,
    /// Label that marks policy ConfigMaps, as KEY=VALUE. Defaults to
    /// `openpolicyagent.org/policy=rego`. If empty, all ConfigMaps in the namespaces are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 384))]
    pub label: Option<String>,
    /// Kinds to replicate into `data.kubernetes` in addition to namespaces, as
    /// [GROUP/]VERSION/RESOURCE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 600)))]
    pub replicate: Vec<String>,
    /// Kinds for which the admission webhook evaluates policies in addition to kinds that create
    /// pods, as [GROUP/]VERSION/RESOURCE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 600)))]
    pub resources: Vec<String>,
    /// ConfigMaps that must be loaded. While one is missing, every request is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub required: Vec<NamespacedName>,
    /// Evaluates policies for a pod a second time, as the template of a Deployment-like object.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wrap_pods: bool,
}

/// Name of a namespaced object.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacedName {
    /// Namespace of the object.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A custom resource that contains pod templates: either a preset, or a description of the
/// resource.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = validation(
    "has(self.preset) ? (!has(self.group) && !has(self.kind) && !has(self.resource) && !has(self.paths) && !has(self.metadataPaths)) : \
     (has(self.group) && has(self.kind) && has(self.resource) && \
     (has(self.paths) && size(self.paths) > 0 || has(self.metadataPaths) && size(self.metadataPaths) > 0))",
    "a workload kind is either a preset alone, or group, kind, resource and paths")))]
pub struct WorkloadKind {
    /// Name of a preset: `argo-rollouts`, `argo-workflows`, `jobset`, `knative`, `kruise`,
    /// `kubeflow`, `leaderworkerset`, `openshift`, `ray`, `spark` or `tekton`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preset: Option<String>,
    /// API group of the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
    /// Kind of the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// Plural name of the resource, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub resource: Option<String>,
    /// Dotted paths of pod templates. `*` matches every entry of a list or map, as in
    /// `spec.replicaSpecs.*.template`. `.` is the object itself, for resources whose pods inherit
    /// its metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub paths: Option<Vec<String>>,
    /// Dotted paths of objects with only `annotations` and `labels` that pods inherit, such as
    /// `spec.podMetadata`. These do not name a service account, so grants are evaluated when the
    /// pods are created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub metadata_paths: Option<Vec<String>>,
}

/// The observed state of the configuration.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolegateConfigStatus {
    /// The `Ready` condition: states whether the configuration is in effect, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// The generation that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
