//! The rules in force and where they come from, for the log, the metrics and the readiness.

use std::time::Duration;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::decision::OwnRole;
use rolegate_core::layer::Mode;
use rolegate_core::rulebook::RuleBook;
pub use rolegate_core::rulebook::RuleSource;
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::Condition;
use tracing::{info, warn};

use crate::rules::Rules;
use crate::snapshot::PolicyCounts;

/// The time for which changes are gathered into one line of the log.
const GATHER: Duration = Duration::from_secs(1);

/// The rules in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RulesInForce {
    /// The source of the configuration.
    pub source: RuleSource,
    /// The base ARN that completes role names; `None` where there is none.
    pub base: Option<BaseArn>,
    /// The modes of the layers.
    pub modes: Modes,
    /// The number of grants.
    pub grants: GrantCounts,
    /// The number of ConfigMaps of policies and data.
    pub policies: PolicyCounts,
    /// The roles that were found to be the node's or this process's own.
    pub own_roles: Vec<OwnRole>,
    /// What the `RolegateConfig` leaves open, so that flags count.
    pub open: LeftOpen,
    /// Whether all that decisions need is loaded.
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

/// The flags and environment variables about rules that a process was started with, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenRuleFlags {
    /// The base ARN.
    pub base: Vec<String>,
    /// The default role.
    pub default_role: Vec<String>,
    /// Flags that count only where there is no `RolegateConfig`.
    pub others: Vec<String>,
}

impl RulesInForce {
    /// The rules of a book with these policies.
    pub(crate) fn of(book: &RuleBook, base: Option<BaseArn>, policies: PolicyCounts) -> Self {
        let object = book.object();
        Self {
            source: book.source(),
            base,
            modes: book.config().modes,
            grants: GrantCounts {
                ok: book.grants().grants().len(),
                invalid: book.grants().invalid().len(),
            },
            policies,
            own_roles: book.found_own_roles().to_vec(),
            open: LeftOpen {
                base: object.is_some_and(|object| object.base.is_none()),
                default_role: object.is_some_and(|object| object.default_role.is_none()),
            },
            is_loaded: book.unseen().is_none(),
        }
    }

    /// Whether pods may have any role, since no layer is enforced and roles are not denied for
    /// another reason.
    pub fn is_open(&self) -> bool {
        let Modes {
            namespace,
            grants,
            rego,
        } = self.modes;
        let counts = matches!(
            self.source,
            RuleSource::Flags | RuleSource::RolegateConfig { .. }
        );
        counts && ![namespace, grants, rego].contains(&Mode::Enforce)
    }

    /// The generation of the `RolegateConfig`, where it is the source.
    pub fn generation(&self) -> Option<i64> {
        match self.source {
            RuleSource::RolegateConfig { generation } => generation,
            _ => None,
        }
    }

    /// A sentence about rules that are open, with what to do; `None` while a layer is enforced.
    pub fn warning(&self) -> Option<String> {
        let todo = match self.source {
            RuleSource::RolegateConfig { .. } => "set spec.layers of the RolegateConfig",
            _ => "set --namespace-restrictions or --layer=grants=enforce",
        };
        self.is_open().then(|| {
            format!(
                "no layer of rules is enforced: any pod may have any role that trusts {}; {todo}",
                self.own_role()
            )
        })
    }

    fn own_role(&self) -> String {
        let roles = self.own_roles.iter().map(|role| match &role.account {
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
        let Modes {
            namespace,
            grants,
            rego,
        } = self.modes;
        info!(
            source = %self.source,
            generation = self.generation(),
            base = self.base.as_ref().map(BaseArn::as_str),
            namespace_layer = namespace.as_str(),
            grants_layer = grants.as_str(),
            rego_layer = rego.as_str(),
            grants = self.grants.ok,
            invalid_grants = self.grants.invalid,
            policies = self.policies.ok + self.policies.outdated,
            unusable_policies = self.policies.unusable,
            "rules in force"
        );
    }
}

impl GivenRuleFlags {
    /// The flags that do not count beside the `RolegateConfig` that is the source of `rules`.
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

/// Logs the rules in force, once they are loaded and whenever they change, and flags that do not
/// count. `layers` is the condition of a process that gives roles to pods: a note while no layer is
/// enforced. Runs until it is dropped.
pub async fn report(rules: Rules, given: GivenRuleFlags, layers: Option<Condition>) {
    // Rules that are not loaded are a condition of their own.
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
                    "flags do not count beside the RolegateConfig"
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
            tokio::time::sleep(GATHER).await;
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
