//! Flags that several of the policy commands share: where rules come from, and how they are read.

use std::path::PathBuf;

use clap::Args;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::arn::resolve;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_kube::client::ClientOptions;
use rolegate_policy::document::is_plain_name;

use crate::annotation_flags::AnnotationFlags;
use crate::flags::{RestrictionFormat, base_arn, invalid};
use crate::kubernetes_flags::KubernetesFlags;
use crate::rule_flags::RuleFlags;

const RULES: &str = "Roles and rules";

/// The rules' own flags, for where there is no RolegateConfig, and the cluster.
#[derive(Debug, Args)]
pub(super) struct ReadFlags {
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    rules: RuleFlags,
    /// ARN that completes bare role names, such as arn:aws:iam::123456789012:role/
    #[arg(long, value_name = "ARN", env = "ROLEGATE_BASE_ROLE_ARN", help_heading = RULES)]
    base_role_arn: Option<String>,
    /// Role of pods that name none, in namespaces that name none
    #[arg(long, value_name = "ROLE", env = "ROLEGATE_DEFAULT_ROLE", help_heading = RULES)]
    default_role: Option<String>,
    /// How the patterns in --namespace-key are written
    #[arg(long, value_name = "FORMAT", env = "ROLEGATE_NAMESPACE_RESTRICTION_FORMAT", default_value = "glob", ignore_case = true, help_heading = RULES)]
    namespace_restriction_format: RestrictionFormat,
    #[command(flatten)]
    annotations: AnnotationFlags,
}

/// The flags, validated.
#[derive(Debug)]
pub(super) struct Reading {
    /// What counts where there is no RolegateConfig.
    pub(super) flags: RuleConfig,
    /// Whether a RolegateConfig counts.
    pub(super) uses_config: bool,
    /// The annotations' keys.
    pub(super) keys: AnnotationKeys,
}

impl ReadFlags {
    /// How the cluster is reached.
    pub(super) fn client(&self) -> ClientOptions {
        self.kubernetes.client()
    }

    /// Validates the flags.
    ///
    /// # Errors
    /// One that makes no sense, as wrong usage.
    pub(super) fn reading(&self) -> anyhow::Result<Reading> {
        let base = base_arn(self.base_role_arn.as_deref())?;
        let default_role = self.default_role.as_deref().filter(|role| !role.is_empty());
        if let Some(role) = default_role {
            resolve(role, base.as_ref())
                .map_err(|error| invalid(format!("--default-role: {error}")))?;
        }
        Ok(Reading {
            flags: RuleConfig {
                base,
                default_role: default_role.map(Into::into),
                modes: self.rules.modes(Modes::default()),
                rego: self.rules.rego()?,
                restriction_format: self.namespace_restriction_format.into(),
                ..RuleConfig::default()
            },
            uses_config: !matches!(
                self.rules.cluster_config,
                crate::flags::ClusterConfigUse::Off
            ),
            keys: self.annotations.keys()?,
        })
    }
}

/// Where objects come from.
#[derive(Debug, Args)]
pub(super) struct RulesFrom {
    /// Rules (namespaces, grants, configuration, ConfigMaps of policies) from this manifest or folder instead of the cluster; may be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) rules: Vec<PathBuf>,
}

/// The name of a namespace.
///
/// # Errors
/// A text that is none, for clap.
pub(super) fn name(text: &str) -> Result<String, String> {
    is_plain_name(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "write a name of lower-case letters, digits, - and .".into())
}
