//! Reports the rules in force and their source in the log and in readiness.

use std::time::Duration;

use rolegate_core::arn::BaseArn;
use rolegate_core::layer::LayerId;
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::Condition;
use tracing::{info, warn};

use crate::in_force::{GivenRuleFlags, RulesInForce};
use crate::rules::RuleStore;

/// Period in which successive changes are combined into one log line.
const LOG_DEBOUNCE: Duration = Duration::from_secs(1);

/// Logs the rules in force when they are loaded and when they change, and any ignored flags.
/// `layers` is the readiness condition of a process that serves roles to pods; it shows a note
/// while no layer is enforced. Runs until it is dropped.
pub(crate) async fn report(rules: RuleStore, given: GivenRuleFlags, layers: Option<Condition>) {
    // Another condition covers rules that are not loaded.
    if let Some(layers) = &layers {
        layers.ok();
    }
    let mut changes = rules.changes();
    let mut reported = RulesInForce::default();
    loop {
        changes.mark_unchanged();
        let now = rules.load().in_force.clone();
        let is_new = now.has_synced && now != reported;
        if is_new {
            log(&now);
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

fn log(rules: &RulesInForce) {
    let mode = |layer| rules.modes[layer].as_str();
    info!(
        source = %rules.source,
        generation = rules.generation(),
        base = rules.base.as_ref().map(BaseArn::as_str),
        namespace_layer = mode(LayerId::Namespace),
        grants_layer = mode(LayerId::Grants),
        rego_layer = mode(LayerId::Rego),
        grants = rules.grants.ok,
        invalid_grants = rules.grants.invalid,
        policies = rules.policies.ok + rules.policies.outdated,
        unusable_policies = rules.policies.unusable,
        "rules in force"
    );
}

#[cfg(test)]
mod tests;
