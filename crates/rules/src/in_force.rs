//! The rules in force and their source, for the log, metrics and readiness.

use std::time::Duration;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::decision::ReservedRole;
use rolegate_core::layer::LayerId;
use rolegate_core::rule_set_builder::RuleSetBuilder;
pub use rolegate_core::rule_set_builder::RuleSource;
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::Condition;
use tracing::{info, warn};

use crate::rules::RuleStore;
use crate::snapshot::PolicyCounts;

/// Period in which successive changes are combined into one log line.
const LOG_DEBOUNCE: Duration = Duration::from_secs(1);

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
    /// True if everything that decisions need is loaded.
    pub is_loaded: bool,
}

/// The number of grants by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GrantCounts {
    /// Valid grants.
    pub ok: usize,
    /// Invalid grants, which grant nothing.
    pub invalid: usize,
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
            reserved_roles: builder.found_reserved_roles().to_vec(),
            open: LeftOpen {
                base: object.is_some_and(|object| object.base.is_none()),
                default_role: object.is_some_and(|object| object.default_role.is_none()),
            },
            is_loaded: builder.unseen().is_none(),
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
        let roles = self.reserved_roles.iter().map(|role| match &role.account {
            Some(account) => format!("role {} of account {account}", role.name),
            None => format!("role {}", role.name),
        });
        let roles: Vec<_> = roles.collect();
        match roles.as_slice() {
            [] => "rolegate's own role".to_owned(),
            roles => roles.join(" or "),
        }
    }

    fn log(&self) {
        let mode = |layer| self.modes[layer].as_str();
        info!(
            source = %self.source,
            generation = self.generation(),
            base = self.base.as_ref().map(BaseArn::as_str),
            namespace_layer = mode(LayerId::Namespace),
            grants_layer = mode(LayerId::Grants),
            rego_layer = mode(LayerId::Rego),
            grants = self.grants.ok,
            invalid_grants = self.grants.invalid,
            policies = self.policies.ok + self.policies.outdated,
            unusable_policies = self.policies.unusable,
            "rules in force"
        );
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
        let default_role = self.default_role.iter();
        let default_role = default_role.filter(|_| !rules.open.default_role);
        let all = base.chain(default_role).chain(&self.others);
        all.map(String::as_str).collect()
    }
}

/// Logs the rules in force when they are loaded and when they change, and any ignored flags.
/// `layers` is the readiness condition of a process that serves roles to pods; it shows a note
/// while no layer is enforced. Runs until it is dropped.
pub async fn report(rules: RuleStore, given: GivenRuleFlags, layers: Option<Condition>) {
    // Another condition covers rules that are not loaded.
    if let Some(layers) = &layers {
        layers.ok();
    }
    let mut changes = rules.changes();
    let mut reported = RulesInForce::default();
    loop {
        changes.mark_unchanged();
        let now = rules.load().in_force.clone();
        let is_new = now.is_loaded && now != reported;
        if is_new {
            now.log();
            let ignored = given.ignored(&now);
            if ignored != given.ignored(&reported) && !ignored.is_empty() {
                warn!(
                    flags = list(&ignored),
                    "ignoring flags that the RolegateConfig overrides"
                );
            }
            if let Some(layers) = &layers {
                note_open(&now, &reported, layers);
            }
            reported = now;
        }
        if changes.changed().await.is_err() {
            return;
        }
        if is_new {
            tokio::time::sleep(LOG_DEBOUNCE).await;
        }
    }
}

fn note_open(now: &RulesInForce, before: &RulesInForce, layers: &Condition) {
    let Some(warning) = now.warning() else {
        return layers.ok();
    };
    if before.warning().as_ref() != Some(&warning) {
        warn!("{warning}");
    }
    layers.note(warning);
}

#[cfg(test)]
mod tests;
