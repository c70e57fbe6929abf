//! The rules in force and their source.

use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::decision::ReservedRole;
use rolegate_core::rule_set_builder::RuleSetBuilder;
pub use rolegate_core::rule_set_builder::RuleSource;

/// The rules in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RulesInForce {
    /// The source of the configuration.
    pub source: RuleSource,
    /// The base ARN that completes role names, if there is one.
    pub base: Option<BaseArn>,
    /// The modes of the layers.
    pub modes: Modes,
    /// The number of grants.
    pub grants: GrantCounts,
    /// The number of ConfigMaps of policies and data.
    pub policies: PolicyCounts,
    /// The detected roles of the node and of this process.
    pub reserved_roles: Vec<ReservedRole>,
    /// The fields of the `RolegateConfig` that are unset, so that flags apply.
    pub open: LeftOpen,
    /// True if everything that decisions need has synced.
    pub has_synced: bool,
}

/// The number of grants by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GrantCounts {
    /// Valid grants.
    pub ok: usize,
    /// Invalid grants, which grant nothing.
    pub invalid: usize,
}

/// The number of ConfigMaps with policies and data, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyCounts {
    /// ConfigMaps in use in their current version.
    pub ok: usize,
    /// Invalid ConfigMaps whose last valid version is in use.
    pub outdated: usize,
    /// Invalid ConfigMaps without a valid version.
    pub unusable: usize,
}

/// The fields that a `RolegateConfig` leaves to flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOpen {
    /// The base ARN.
    pub base: bool,
    /// The default role.
    pub default_role: bool,
}

/// The flags and environment variables for rules that the process was started with, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenRuleFlags {
    /// The base ARN.
    pub base: Vec<String>,
    /// The default role.
    pub default_role: Vec<String>,
    /// Flags that apply only without a `RolegateConfig`.
    pub others: Vec<String>,
}

impl RulesInForce {
    /// Summarizes the rules of a builder and its policies.
    pub(crate) fn of(
        builder: &RuleSetBuilder,
        base: Option<BaseArn>,
        policies: PolicyCounts,
    ) -> Self {
        let object = builder.object();
        Self {
            source: builder.source(),
            base,
            modes: builder.config().modes,
            grants: GrantCounts {
                ok: builder.grants().grants().len(),
                invalid: builder.grants().invalid().len(),
            },
            policies,
            reserved_roles: builder.detected_reserved_roles().to_vec(),
            open: LeftOpen {
                base: object.is_some_and(|object| object.base.is_none()),
                default_role: object.is_some_and(|object| object.default_role.is_none()),
            },
            has_synced: builder.not_synced().is_none(),
        }
    }

    /// Returns true if pods may assume any role, because no layer is enforced and roles are not
    /// denied for another reason.
    pub fn is_open(&self) -> bool {
        let counts = matches!(
            self.source,
            RuleSource::Flags | RuleSource::RolegateConfig { .. }
        );
        counts && !self.modes.enforces_any()
    }

    /// Returns the generation of the `RolegateConfig` if it is the source.
    pub fn generation(&self) -> Option<i64> {
        match self.source {
            RuleSource::RolegateConfig { generation } => generation,
            _ => None,
        }
    }

    /// Returns a warning about open rules, with advice; `None` while a layer is enforced.
    pub fn warning(&self) -> Option<String> {
        let todo = match self.source {
            RuleSource::RolegateConfig { .. } => "set spec.layers of the RolegateConfig",
            _ => "set --namespace-restrictions or --layer=grants=enforce",
        };
        self.is_open().then(|| {
            format!(
                "no rule layer is enforced: any pod may assume any role that trusts {}; {todo}",
                self.reserved_role()
            )
        })
    }

    fn reserved_role(&self) -> String {
        let roles: Vec<_> = self
            .reserved_roles
            .iter()
            .map(|role| match &role.account {
                Some(account) => format!("role {} of account {account}", role.name),
                None => format!("role {}", role.name),
            })
            .collect();
        match roles.as_slice() {
            [] => "rolegate's own role".to_owned(),
            roles => roles.join(" or "),
        }
    }
}

impl GivenRuleFlags {
    /// Returns the flags that are ignored in favor of the `RolegateConfig` that is the source of
    /// `rules`.
    pub fn ignored(&self, rules: &RulesInForce) -> Vec<&str> {
        if !matches!(rules.source, RuleSource::RolegateConfig { .. }) {
            return Vec::new();
        }
        let base = self.base.iter().filter(|_| !rules.open.base);
        let default_role = self
            .default_role
            .iter()
            .filter(|_| !rules.open.default_role);
        let all = base.chain(default_role).chain(&self.others);
        all.map(String::as_str).collect()
    }
}
