//! Which objects the gate looks at, and where they hold pod templates.

use rolegate_core::config::{RuleConfig, TemplateKind};

use crate::review::Review;

/// The API group of rolegate's own objects.
pub(crate) const OURS: &str = "rolegate.dev";
/// Our kinds that hold rules, and their plurals.
pub(crate) const RULES: &[(&str, &str)] = &[
    ("RoleGrant", "rolegrants"),
    ("RolegateConfig", "rolegateconfigs"),
];
/// The API group of credentials as Secrets (kube-aws-iam-controller).
pub(crate) const ZALANDO: &str = "zalando.org";

/// A kind of Kubernetes that makes pods out of a template.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template {
    pub(crate) group: &'static str,
    pub(crate) kind: &'static str,
    /// The plural.
    pub(crate) resource: &'static str,
    /// The fields that lead to the template.
    pub(crate) path: &'static [&'static str],
}

const fn template(
    group: &'static str,
    kind: &'static str,
    resource: &'static str,
    path: &'static [&'static str],
) -> Template {
    Template {
        group,
        kind,
        resource,
        path,
    }
}

const USUAL: &[&str] = &["spec", "template"];

/// All kinds of Kubernetes that hold a pod template.
pub(crate) const TEMPLATES: &[Template] = &[
    template("", "PodTemplate", "podtemplates", &["template"]),
    template("", "ReplicationController", "replicationcontrollers", USUAL),
    template("apps", "DaemonSet", "daemonsets", USUAL),
    template("apps", "Deployment", "deployments", USUAL),
    template("apps", "ReplicaSet", "replicasets", USUAL),
    template("apps", "StatefulSet", "statefulsets", USUAL),
    template(
        "batch",
        "CronJob",
        "cronjobs",
        &["spec", "jobTemplate", "spec", "template"],
    ),
    template("batch", "Job", "jobs", USUAL),
];

/// What a review is about, as far as the gate has something to say to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    /// A pod, or its ephemeral containers.
    Pod,
    /// A pod's status, by which its metadata can be written too.
    PodStatus,
    /// What binds a pod to a node, and copies its own metadata onto the pod.
    Binding,
    /// A kind with one template at these fields.
    Template(&'static [&'static str]),
    /// A custom resource with templates.
    Custom(&'a TemplateKind),
    /// A service account, whose annotation names the role of web identity.
    ServiceAccount,
    /// A request for a service account's token.
    TokenRequest,
    /// Credentials as a Secret.
    AwsIamRole,
    /// A namespace, or its status or finalizers.
    Namespace,
    /// A Service or its status.
    Service,
    /// A grant or the configuration.
    Rules,
    /// A ConfigMap, which may hold a policy.
    ConfigMap,
    /// Anything else: only policies may have something to say.
    Other,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(review: &Review<'_>, config: &'a RuleConfig) -> Self {
        let kind = review.kind();
        match (&*kind.group, &*kind.kind, review.subresource()) {
            ("", "Pod", "" | "ephemeralcontainers") => Self::Pod,
            ("", "Pod", "status") => Self::PodStatus,
            ("", "Binding", _) => Self::Binding,
            ("", "ServiceAccount", "") => Self::ServiceAccount,
            ("authentication.k8s.io", "TokenRequest", "token") => Self::TokenRequest,
            (ZALANDO, "AWSIAMRole", "") => Self::AwsIamRole,
            ("", "Namespace", _) => Self::Namespace,
            ("", "Service", _) => Self::Service,
            ("", "ConfigMap", "") => Self::ConfigMap,
            (OURS, kind, "") if RULES.iter().any(|(known, _)| *known == kind) => Self::Rules,
            (group, kind, "") => {
                let builtin = TEMPLATES
                    .iter()
                    .find(|known| known.group == group && known.kind == kind);
                let custom = || {
                    let mut custom = config.templates.iter();
                    custom.find(|known| *known.group == *group && *known.kind == *kind)
                };
                match builtin {
                    Some(template) => Self::Template(template.path),
                    None => custom().map_or(Self::Other, Self::Custom),
                }
            }
            _ => Self::Other,
        }
    }

    /// Whether a spared namespace spares it. What rules themselves consist of is guarded
    /// everywhere.
    pub(crate) fn can_be_spared(self) -> bool {
        !matches!(self, Self::Namespace | Self::Rules | Self::ConfigMap)
    }
}
