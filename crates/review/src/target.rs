//! The objects that the webhook validates, and the paths of their pod templates.

use rolegate_core::config::{RuleConfig, TemplateKind};
use rolegate_core::template_kinds::BuiltinTemplateKind;

use crate::admission_review::Review;

/// The API group of rolegate's own objects.
pub(crate) const OURS: &str = "rolegate.dev";
/// Our kinds that hold rules, and their plurals.
pub(crate) const RULES: &[(&str, &str)] = &[
    ("RoleGrant", "rolegrants"),
    ("RolegateConfig", "rolegateconfigs"),
];
/// The API group of kube-aws-iam-controller's `AWSIAMRole`, which stores credentials in Secrets.
pub(crate) const ZALANDO: &str = "zalando.org";

/// The subject of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReviewTarget<'a> {
    /// A pod, or its ephemeral containers.
    Pod,
    /// A pod's status, which can also change its metadata.
    PodStatus,
    /// A binding of a pod to a node. Its metadata is copied to the pod.
    Binding,
    /// A kind with one template at this path.
    Template(&'static [&'static str]),
    /// A custom resource with templates.
    Custom(&'a TemplateKind),
    /// A service account, whose annotation names the role of web identity.
    ServiceAccount,
    /// A request for a service account's token.
    TokenRequest,
    /// Credentials in a Secret.
    AwsIamRole,
    /// A namespace, or its status or finalizers.
    Namespace,
    /// A Service or its status.
    Service,
    /// A grant or the configuration.
    Rules,
    /// A ConfigMap, which may hold a policy.
    ConfigMap,
    /// Anything else, which only policies evaluate.
    Other,
}

impl<'a> ReviewTarget<'a> {
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
                let custom = || {
                    let mut custom = config.templates.iter();
                    custom.find(|known| *known.group == *group && *known.kind == *kind)
                };
                match BuiltinTemplateKind::find(group, kind) {
                    Some(builtin) => Self::Template(builtin.path),
                    None => custom().map_or(Self::Other, Self::Custom),
                }
            }
            _ => Self::Other,
        }
    }

    /// Returns `true` if the objects of exempt namespaces are exempt. Objects that hold rules are
    /// protected everywhere.
    pub(crate) fn can_be_exempt(self) -> bool {
        !matches!(self, Self::Namespace | Self::Rules | Self::ConfigMap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rules_consist_of_is_spared_nowhere() {
        for subject in [
            ReviewTarget::Namespace,
            ReviewTarget::Rules,
            ReviewTarget::ConfigMap,
        ] {
            assert!(!subject.can_be_exempt(), "{subject:?}");
        }
        for subject in [
            ReviewTarget::Pod,
            ReviewTarget::ServiceAccount,
            ReviewTarget::Other,
        ] {
            assert!(subject.can_be_exempt(), "{subject:?}");
        }
    }
}
