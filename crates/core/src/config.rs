//! The rule configuration, which must be the same everywhere in a cluster. It comes from the
//! cluster's `RolegateConfig`, or from flags without it.

pub mod presets;

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::annotation::normalized;
use crate::arn::BaseArn;
use crate::attribution::Attribution;
use crate::decision::ReservedRole;
use crate::layer::{LayerId, Mode};
use crate::names;
use crate::pattern::PatternFormat;

/// The rule configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleConfig {
    /// The `metadata.generation` of the `RolegateConfig`; `None` for flags, and for a manifest
    /// without one.
    pub generation: Option<i64>,
    /// The base ARN that completes bare role names; `None` to use the detected one.
    pub base: Option<BaseArn>,
    /// The role of pods that request none, in namespaces without a default: a name or an ARN.
    pub default_role: Option<Arc<str>>,
    /// Roles of the nodes and of rolegate itself, which are denied to every pod, in addition to
    /// those that a process detects.
    pub reserved_roles: Vec<ReservedRole>,
    /// The layers' modes.
    pub modes: Modes,
    /// The format of role restrictions in namespace annotations.
    pub restriction_format: PatternFormat,
    /// True if layer `namespace` allows every role in a namespace without annotations.
    pub allow_unannotated: bool,
    /// Namespaces whose objects the admission webhook admits without validation. Agents do not
    /// exempt their pods.
    pub exempt_namespaces: BTreeSet<Arc<str>>,
    /// Users and groups that may set or change a namespace's role annotations and the labels that
    /// grants select. With `None`, only `system:masters` may while [`RuleConfig::guards`] is
    /// enforced.
    pub namespace_writers: Option<Subjects>,
    /// Users and groups that may write grants, the configuration and policy ConfigMaps. With
    /// `None`, RBAC alone decides.
    pub rule_writers: Option<Subjects>,
    /// Sources of Rego policies.
    pub rego: RegoConfig,
    /// The name of the cluster, sent to STS as a tag of every session.
    pub cluster: Option<Arc<str>>,
    /// The attribution of sessions, unless a grant overrides it.
    pub attribution: Attribution,
    /// Custom resources that contain pod templates.
    pub templates: Vec<TemplateKind>,
    /// True to prevent unprivileged users from creating pods that choose their node or tolerate all
    /// taints, since such pods can start before the agent.
    pub guard_scheduling: bool,
    /// Client IDs of the user's own OIDC providers in IAM. The admission webhook treats tokens for
    /// these audiences as AWS credentials, in addition to the well-known ones.
    pub web_identity_audiences: BTreeSet<Audience>,
}

/// The audience of a token, compared without regard to case and surrounding blanks. The empty
/// audience is that of a projected token without an explicit one, which is the API server's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Audience(Arc<str>);

impl Audience {
    /// Creates an audience from its text.
    pub fn new(text: &str) -> Self {
        Self(normalized(text).to_ascii_lowercase().into())
    }

    /// Returns the text in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RuleConfig {
    /// Enables only layer `namespace`, as for a `RolegateConfig` without `layers`.
    fn default() -> Self {
        Self {
            generation: None,
            base: None,
            default_role: None,
            reserved_roles: Vec::new(),
            modes: Modes::default(),
            restriction_format: PatternFormat::Glob,
            allow_unannotated: false,
            exempt_namespaces: ["kube-system", names::NAMESPACE].map(Into::into).into(),
            namespace_writers: None,
            rule_writers: None,
            rego: RegoConfig::default(),
            cluster: None,
            attribution: Attribution::default(),
            templates: Vec::new(),
            guard_scheduling: false,
            web_identity_audiences: BTreeSet::new(),
        }
    }
}

impl RuleConfig {
    /// Returns the mode of the webhook's checks that do not depend on layers, such as those of
    /// changes to rules. They are enforced if a layer is enforced, or if namespace writers, rule
    /// writers or the scheduling guard are configured. Otherwise the webhook only warns, so that
    /// its installation rejects nothing that was accepted before.
    pub fn guards(&self) -> Mode {
        let configured = self.namespace_writers.is_some()
            || self.rule_writers.is_some()
            || self.guard_scheduling;
        if configured || self.modes.enforces_any() {
            Mode::Enforce
        } else {
            Mode::Audit
        }
    }

    /// Fills unset values of the cluster's configuration from a process's `flags`: the base ARN,
    /// the default role and additional reserved roles.
    #[must_use]
    pub fn with_defaults_from(&self, flags: &Self) -> Self {
        let mut reserved_roles = self.reserved_roles.clone();
        reserved_roles.extend(flags.reserved_roles.iter().cloned());
        Self {
            base: self.base.as_ref().or(flags.base.as_ref()).cloned(),
            default_role: self
                .default_role
                .as_ref()
                .or(flags.default_role.as_ref())
                .cloned(),
            reserved_roles,
            ..self.clone()
        }
    }
}

/// The mode of each layer, indexed by [`LayerId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes([Mode; LayerId::ALL.len()]);

impl Modes {
    /// All layers are off.
    pub const OFF: Self = Self([Mode::Off; LayerId::ALL.len()]);

    /// Creates the modes that `mode` returns for each layer.
    pub fn from_fn(mode: impl FnMut(LayerId) -> Mode) -> Self {
        Self(LayerId::ALL.map(mode))
    }

    /// Returns the same modes with another one for `layer`.
    #[must_use]
    pub fn with(mut self, layer: LayerId, mode: Mode) -> Self {
        self[layer] = mode;
        self
    }

    /// Returns each layer with its mode.
    pub fn iter(&self) -> impl Iterator<Item = (LayerId, Mode)> {
        LayerId::ALL.into_iter().zip(self.0)
    }

    /// Returns true if a layer is enforced.
    pub fn enforces_any(&self) -> bool {
        self.0.contains(&Mode::Enforce)
    }
}

impl Default for Modes {
    /// Enforces layer `namespace` alone.
    fn default() -> Self {
        Self::OFF.with(LayerId::Namespace, Mode::Enforce)
    }
}

impl Index<LayerId> for Modes {
    type Output = Mode;

    #[expect(
        clippy::indexing_slicing,
        reason = "the array has an element for each layer"
    )]
    fn index(&self, layer: LayerId) -> &Mode {
        &self.0[layer as usize]
    }
}

impl IndexMut<LayerId> for Modes {
    #[expect(
        clippy::indexing_slicing,
        reason = "the array has an element for each layer"
    )]
    fn index_mut(&mut self, layer: LayerId) -> &mut Mode {
        &mut self.0[layer as usize]
    }
}

/// Users and groups, as the API server names them. Members of `system:masters` are always included,
/// so that a cluster can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subjects {
    /// User names. A service account is `system:serviceaccount:NAMESPACE:NAME`.
    pub users: BTreeSet<Arc<str>>,
    /// Group names.
    pub groups: BTreeSet<Arc<str>>,
}

impl Subjects {
    /// Returns true if the user or one of the groups is included.
    pub fn contains<'a>(&self, user: &str, groups: impl IntoIterator<Item = &'a str>) -> bool {
        self.users.contains(user)
            || groups
                .into_iter()
                .any(|group| group == "system:masters" || self.groups.contains(group))
    }
}

/// Sources of Rego policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegoConfig {
    /// Namespaces whose ConfigMaps are read.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The label (key, value) of policy ConfigMaps; `None` to read every ConfigMap.
    pub label: Option<(Arc<str>, Arc<str>)>,
    /// Kinds replicated into `data.kubernetes` in addition to namespaces.
    pub replicate: Vec<ResourceKind>,
    /// Kinds for which the admission webhook evaluates policies in addition to kinds that create
    /// pods.
    pub resources: Vec<ResourceKind>,
    /// ConfigMaps (namespace, name) that must be loaded. While one is missing, every request is
    /// denied.
    pub required: BTreeSet<(Arc<str>, Arc<str>)>,
    /// True to also evaluate policies for a pod wrapped in the kinds that a policy names.
    pub wrap_pods: bool,
}

/// The label by which kube-mgmt finds policy ConfigMaps.
pub const POLICY_LABEL: (&str, &str) = ("openpolicyagent.org/policy", "rego");
/// The label by which kube-mgmt finds data ConfigMaps.
pub const DATA_LABEL: (&str, &str) = ("openpolicyagent.org/data", "opa");

impl Default for RegoConfig {
    fn default() -> Self {
        Self {
            namespaces: ["opa".into()].into(),
            label: Some((POLICY_LABEL.0.into(), POLICY_LABEL.1.into())),
            replicate: Vec::new(),
            resources: Vec::new(),
            required: BTreeSet::new(),
            wrap_pods: false,
        }
    }
}

/// A resource type, as in the URL of the Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKind {
    /// The API group; empty for the core group.
    pub group: Arc<str>,
    /// The version.
    pub version: Arc<str>,
    /// The plural name, in lower case.
    pub resource: Arc<str>,
}

impl ResourceKind {
    /// Returns `v1/namespaces`.
    pub fn namespaces() -> Self {
        Self {
            group: "".into(),
            version: "v1".into(),
            resource: "namespaces".into(),
        }
    }

    /// Returns the index of the first kind whose plural, the only key in `data.kubernetes`, is
    /// already taken by an earlier kind or by namespaces.
    pub fn first_plural_conflict(kinds: &[Self]) -> Option<usize> {
        let namespaces = Self::namespaces();
        kinds.iter().enumerate().find_map(|(place, kind)| {
            let before = kinds.iter().take(place).chain([&namespaces]);
            let mut same = before.filter(|other| other.resource == kind.resource);
            same.any(|other| other != kind).then_some(place)
        })
    }

    /// Parses `[group/]version/resource`, kube-mgmt's format.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let (group, version, resource) = match *parts.as_slice() {
            [version, resource] => ("", version, resource),
            [group, version, resource] => (group, version, resource),
            _ => return None,
        };
        let fine = |text: &str| {
            text.len() <= 253
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        let complete = !version.is_empty() && !resource.is_empty();
        (complete && [group, version, resource].into_iter().all(fine)).then(|| Self {
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
        })
    }
}

/// A custom resource that contains pod templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateKind {
    /// The API group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// The plural name, for webhook rules.
    pub resource: Arc<str>,
    /// Dotted paths of pod templates (objects with `metadata` and `spec`). `*` matches every entry
    /// of a list or map, as in `spec.replicaSpecs.*.template`. `.` is the object itself, for kinds
    /// whose pods inherit its metadata.
    pub paths: Vec<Arc<str>>,
    /// Dotted paths of metadata alone (objects with `annotations` and `labels`) that pods inherit.
    pub metadata: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_compared_without_case_and_blanks() {
        let audience = Audience::new(" STS.amazonaws.com ");
        assert_eq!(audience.as_str(), "sts.amazonaws.com");
        assert_eq!(audience, Audience::new("sts.AMAZONAWS.com"));
    }

    #[test]
    fn kinds_are_written_as_for_kube_mgmt() {
        let parts = |text| {
            ResourceKind::parse(text)
                .map(|kind| format!("{}|{}|{}", kind.group, kind.version, kind.resource))
        };
        assert_eq!(parts("v1/services").unwrap(), "|v1|services");
        assert_eq!(
            parts("networking.k8s.io/v1/ingresses").unwrap(),
            "networking.k8s.io|v1|ingresses"
        );
        for wrong in [
            "",
            "services",
            "v1/",
            "/services",
            "a/b/c/d",
            "v1/Pods",
            "v1/pods?x",
        ] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn kinds_of_one_plural_have_one_place() {
        let of = |texts: &[&str]| {
            let kinds = texts.iter().filter_map(|text| ResourceKind::parse(text));
            ResourceKind::first_plural_conflict(&kinds.collect::<Vec<_>>())
        };
        assert_eq!(of(&["v1/services", "v1/namespaces", "v1/services"]), None);
        assert_eq!(of(&["v1/services", "a.b/v1/services"]), Some(1));
        assert_eq!(of(&["apps/v1/x", "apps/v2/x"]), Some(1));
        assert_eq!(of(&["a.b/v1/namespaces"]), Some(0));
    }

    #[test]
    fn masters_always_belong() {
        let some = Subjects {
            users: ["ann".into()].into(),
            groups: ["ops".into()].into(),
        };
        assert!(some.contains("ann", []));
        assert!(some.contains("bob", ["dev", "ops"]));
        assert!(some.contains("bob", ["system:masters"]));
        assert!(!some.contains("bob", ["dev"]));
        assert!(!Subjects::default().contains("", []));
    }

    #[test]
    fn guards_are_enforced_once_any_of_them_or_any_layer_is() {
        let off = RuleConfig {
            modes: Modes::OFF.with(LayerId::Namespace, Mode::Audit),
            ..RuleConfig::default()
        };
        assert_eq!(off.guards(), Mode::Audit);
        type Change = fn(&mut RuleConfig);
        let changes: [Change; 6] = [
            |config| config.namespace_writers = Some(Subjects::default()),
            |config| config.rule_writers = Some(Subjects::default()),
            |config| config.guard_scheduling = true,
            |config| config.modes[LayerId::Namespace] = Mode::Enforce,
            |config| config.modes[LayerId::Grants] = Mode::Enforce,
            |config| config.modes[LayerId::Rego] = Mode::Enforce,
        ];
        for (place, change) in changes.into_iter().enumerate() {
            let mut config = off.clone();
            change(&mut config);
            assert_eq!(config.guards(), Mode::Enforce, "change {place}");
        }
    }
}
