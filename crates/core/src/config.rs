//! What must be the same everywhere: the configuration of the rules, from the cluster's
//! `RolegateConfig` or, where there is none, from flags.

pub mod presets;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::annotation::normalized;
use crate::arn::BaseArn;
use crate::attribution::Attribution;
use crate::decision::OwnRole;
use crate::layer::Mode;
use crate::pattern::PatternFormat;

/// The configuration of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleConfig {
    /// The `metadata.generation` of the `RolegateConfig`; `None` for flags, and for a manifest that
    /// does not have it.
    pub generation: Option<i64>,
    /// What completes bare role names; `None`: what was found out about where we run.
    pub base: Option<BaseArn>,
    /// The role of pods that name none, in namespaces that name none: a name or an ARN.
    pub default_role: Option<Arc<str>>,
    /// Roles of the nodes and of rolegate itself, which no pod may have, beside those that a
    /// process finds out.
    pub own_roles: Vec<OwnRole>,
    /// The layers' modes.
    pub modes: Modes,
    /// How allowed roles are written in namespaces' annotations.
    pub restriction_format: PatternFormat,
    /// Whether a namespace without annotations allows every role, as far as layer `namespace`
    /// goes.
    pub allow_unannotated: bool,
    /// Names of namespaces whose objects the gate lets through. The doors decide for their pods
    /// as for all others.
    pub spared_namespaces: BTreeSet<Arc<str>>,
    /// Who may set or change role annotations and granting labels of namespaces; `None`: nobody, where
    /// [`RuleConfig::guards`] are enforced.
    pub namespace_writers: Option<Subjects>,
    /// Who may write grants, the configuration and ConfigMaps of policies; `None`: whoever RBAC
    /// lets.
    pub rule_writers: Option<Subjects>,
    /// Where policies come from.
    pub rego: RegoConfig,
    /// A name for the cluster, sent to STS as a tag of every session.
    pub cluster: Option<Arc<str>>,
    /// How sessions say whose they are, where no grant says otherwise.
    pub attribution: Attribution,
    /// Custom resources that hold pod templates.
    pub templates: Vec<TemplateKind>,
    /// Whether pods of ordinary users may choose their node or tolerate everything, by which they
    /// start before the agent does.
    pub guard_scheduling: bool,
    /// Client IDs of the user's own OIDC providers in IAM: the gate treats tokens for these
    /// audiences as tokens for credentials, in addition to the known ones.
    pub web_identity_audiences: BTreeSet<Audience>,
}

/// The audience of a token, without regard to case and to blanks around it. An empty one is that of a
/// token that a pod mounts without naming one, which is the API server's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Audience(Arc<str>);

impl Audience {
    /// The audience that `text` names.
    pub fn new(text: &str) -> Self {
        Self(normalized(text).to_ascii_lowercase().into())
    }

    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RuleConfig {
    /// Only layer `namespace` is on, as in a cluster's configuration that says nothing of layers.
    fn default() -> Self {
        Self {
            generation: None,
            base: None,
            default_role: None,
            own_roles: Vec::new(),
            modes: Modes::default(),
            restriction_format: PatternFormat::Glob,
            allow_unannotated: false,
            spared_namespaces: ["kube-system", "rolegate-system"].map(Into::into).into(),
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
    /// The mode of what the webhook refuses whatever the layers say, such as changes of the rules
    /// themselves. It is enforced once a layer is, or a guard is configured; until then the webhook
    /// warns, so that installing it refuses nothing that was accepted before.
    pub fn guards(&self) -> Mode {
        let modes = [self.modes.namespace, self.modes.grants, self.modes.rego];
        let configured = self.namespace_writers.is_some()
            || self.rule_writers.is_some()
            || self.guard_scheduling;
        if configured || modes.contains(&Mode::Enforce) {
            Mode::Enforce
        } else {
            Mode::Audit
        }
    }

    /// The cluster's configuration with what it leaves open filled in by a process's `flags`: the
    /// base ARN, the default role, and further roles of our own.
    #[must_use]
    pub fn completed_by(&self, flags: &Self) -> Self {
        let mut own_roles = self.own_roles.clone();
        own_roles.extend(flags.own_roles.iter().cloned());
        Self {
            base: self.base.as_ref().or(flags.base.as_ref()).cloned(),
            default_role: self
                .default_role
                .as_ref()
                .or(flags.default_role.as_ref())
                .cloned(),
            own_roles,
            ..self.clone()
        }
    }
}

/// The layers' modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Annotations of namespaces.
    pub namespace: Mode,
    /// Grants.
    pub grants: Mode,
    /// Rego policies.
    pub rego: Mode,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            namespace: Mode::Enforce,
            grants: Mode::Off,
            rego: Mode::Off,
        }
    }
}

/// Users and groups, as the API server names them. Those of `system:masters` always belong to
/// them, so that a cluster can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subjects {
    /// Names of users; service accounts are `system:serviceaccount:NAMESPACE:NAME`.
    pub users: BTreeSet<Arc<str>>,
    /// Names of groups.
    pub groups: BTreeSet<Arc<str>>,
}

impl Subjects {
    /// Whether a user with these groups is one of them.
    pub fn contains<'a>(&self, user: &str, groups: impl IntoIterator<Item = &'a str>) -> bool {
        self.users.contains(user)
            || groups
                .into_iter()
                .any(|group| group == "system:masters" || self.groups.contains(group))
    }
}

/// Where Rego policies come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegoConfig {
    /// Namespaces whose ConfigMaps are read.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The label (key, value) of ConfigMaps that hold policies; `None`: every ConfigMap there.
    pub label: Option<(Arc<str>, Arc<str>)>,
    /// Kinds replicated into `data.kubernetes`, beside namespaces.
    pub replicate: Vec<ResourceKind>,
    /// Kinds that policies see at the gate, beside those that make pods.
    pub resources: Vec<ResourceKind>,
    /// ConfigMaps (namespace, name) without which everything is refused.
    pub required: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Whether a pod is also asked about wrapped in the kinds that a policy names.
    pub wrap_pods: bool,
}

/// The label that kube-mgmt looks for on ConfigMaps of policies.
pub const POLICY_LABEL: (&str, &str) = ("openpolicyagent.org/policy", "rego");
/// The label that kube-mgmt looks for on ConfigMaps of data.
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

/// A kind of objects by the words of its URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKind {
    /// The API group; empty for the core group.
    pub group: Arc<str>,
    /// The version.
    pub version: Arc<str>,
    /// The plural, in lower case.
    pub resource: Arc<str>,
}

impl ResourceKind {
    /// `v1/namespaces`.
    pub fn namespaces() -> Self {
        Self {
            group: "".into(),
            version: "v1".into(),
            resource: "namespaces".into(),
        }
    }

    /// The first of some kinds that would share its place in `data.kubernetes`, which the plural alone
    /// names, with one before it or with namespaces.
    pub fn in_ones_place(kinds: &[Self]) -> Option<usize> {
        let namespaces = Self::namespaces();
        kinds.iter().enumerate().find_map(|(place, kind)| {
            let before = kinds.iter().take(place).chain([&namespaces]);
            let mut same = before.filter(|other| other.resource == kind.resource);
            same.any(|other| other != kind).then_some(place)
        })
    }

    /// Reads `[group/]version/resource`, as kube-mgmt writes it.
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

/// A custom resource that holds pod templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateKind {
    /// The API group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// The plural, for webhook rules.
    pub resource: Arc<str>,
    /// Dotted paths of pod templates (objects with `metadata` and `spec`); `*` stands for every
    /// entry of a list or map, such as `spec.replicaSpecs.*.template`, and `.` for the object
    /// itself, whose metadata its pods take over.
    pub paths: Vec<Arc<str>>,
    /// Dotted paths of metadata alone (objects with `annotations` and `labels`) that pods take over.
    pub metadata: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ResourceKind::in_ones_place(&kinds.collect::<Vec<_>>())
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
}
