//! The `RolegateConfig` that is equivalent to a configuration of the rules.

use rolegate_core::config::{RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::decision::ReservedRole;
use rolegate_core::pattern::PatternFormat;

use crate::{
    CONFIG_NAME, NamespaceDefault, Rego, RestrictionFormat, RolegateConfig, RolegateConfigSpec,
};

impl From<&RuleConfig> for RolegateConfig {
    /// Expresses the settings that flags of agents can have.
    fn from(flags: &RuleConfig) -> Self {
        let unless_given = RegoConfig::default();
        let rego = (flags.rego != unless_given).then(|| Rego {
            namespaces: Some(
                flags
                    .rego
                    .namespaces
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            ),
            label: Some(match &flags.rego.label {
                Some((key, value)) => format!("{key}={value}"),
                None => String::new(),
            }),
            replicate: flags.rego.replicate.iter().map(kind_text).collect(),
            ..Rego::default()
        });
        let spec = RolegateConfigSpec {
            base_role_arn: flags.base.as_ref().map(|base| base.as_str().to_owned()),
            default_role: flags.default_role.as_deref().map(str::to_owned),
            reserved_roles: flags.reserved_roles.iter().map(role_text).collect(),
            layers: Some(flags.modes.into()),
            namespace_restriction_format: Some(match flags.restriction_format {
                PatternFormat::Glob => RestrictionFormat::Glob,
                PatternFormat::Regexp => RestrictionFormat::Regexp,
            }),
            namespace_restrictions_default: Some(if flags.allow_unannotated {
                NamespaceDefault::Allow
            } else {
                NamespaceDefault::Deny
            }),
            rego,
            ..RolegateConfigSpec::default()
        };
        Self::new(CONFIG_NAME, spec)
    }
}

fn role_text(role: &ReservedRole) -> String {
    match &role.account {
        Some(account) => format!("arn:aws:iam::{account}:role/{}", role.name),
        None => role.name.clone(),
    }
}

fn kind_text(kind: &ResourceKind) -> String {
    let ResourceKind {
        group,
        version,
        resource,
    } = kind;
    if group.is_empty() {
        format!("{version}/{resource}")
    } else {
        format!("{group}/{version}/{resource}")
    }
}
