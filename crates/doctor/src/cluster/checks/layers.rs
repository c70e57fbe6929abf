//! At least one layer of rules is enforced.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use crate::check::{Finding, Outcome};
use crate::objects::Workload;
use crate::reading::{Reading, Unread};

const ENFORCE: &str = "move to enforced layers: docs/policy.md";

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let has_kind = !matches!(facts.configs, Err(Unread::NotInstalled(_)));
    match facts.modes()? {
        Some(modes) => Ok(by_modes(&modes)),
        None if has_kind => {
            let message = "the RolegateConfig is missing although its kind is installed: every role is denied until it exists";
            let advice = "kubectl apply -f deploy/examples/rolegateconfig.yaml, or `rolegate policy adopt` to write one from the agents' flags";
            Ok(Finding::problem(message).advice(advice).into())
        }
        None => by_flags(facts),
    }
}

fn by_modes(modes: &[(String, String)]) -> Outcome {
    let shown: Vec<_> = modes
        .iter()
        .map(|(layer, mode)| format!("{layer}={mode}"))
        .collect();
    let shown = shown.join(" ");
    let has = |wanted: &str| modes.iter().any(|(_, mode)| mode == wanted);
    if has("enforce") {
        return Outcome::ok(shown);
    }
    let message = if has("audit") {
        format!(
            "{shown}: layers in mode audit deny nothing, so any pod may have any role that trusts rolegate's"
        )
    } else {
        format!("{shown}: any pod may have any role that trusts rolegate's")
    };
    Finding::warning(message).advice(ENFORCE).into()
}

/// Reads the flags of the processes that decide. A flag may come from another object, so flags that
/// are missing are only a warning.
fn by_flags(facts: &ClusterFacts) -> Reading<Outcome> {
    let process = if facts.has_brokered_agents()? {
        Process::Broker
    } else {
        Process::Agent
    };
    let workloads = facts.workloads(process)?;
    if workloads.is_empty() {
        return Err(Unread::Depends(
            "no process that decides is installed".into(),
        ));
    }
    let enforcing = workloads.iter().all(|workload| is_enforcing(workload));
    let names = process.name();
    Ok(if enforcing {
        Outcome::ok(format!("the flags of {names} enforce a layer"))
    } else {
        let message = format!(
            "the flags of {names} enforce no layer: any pod may have any role that trusts rolegate's"
        );
        Finding::warning(message).advice(ENFORCE).into()
    })
}

fn is_enforcing(workload: &Workload) -> bool {
    let containers = &workload.spec.template.spec.containers;
    let mut containers = containers.iter();
    containers.any(|container| {
        let restricts = container.flag(
            "--namespace-restrictions",
            "ROLEGATE_NAMESPACE_RESTRICTIONS",
        );
        let restricts = restricts.is_some_and(|value| value != "false");
        let mut texts = container.command.iter().chain(&container.args);
        let layer = texts.any(|text| text.ends_with("=enforce"));
        let variable = container.env.iter().any(|variable| {
            variable.name == "ROLEGATE_LAYER" && variable.value.contains("=enforce")
        });
        restricts || layer || variable
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::{healthy, rule};

    #[test]
    fn an_enforced_layer_passes() {
        let mut facts = healthy();
        let outcome = check(&facts).unwrap();
        assert_eq!(
            outcome,
            Outcome::ok("namespace=off grants=enforce rego=off")
        );
        for layers in [json!({}), json!({"layers": {"rego": "audit"}})] {
            facts.configs = Ok(vec![rule(layers, "True")]);
            assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        }
        facts.configs = Ok(Vec::new());
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert!(outcome.summary.contains("is missing"), "{outcome:?}");
    }

    #[test]
    fn without_the_kind_the_flags_count() {
        let mut facts = healthy();
        facts.configs = Err(Unread::NotInstalled("rolegateconfigs".into()));
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        for flag in ["--namespace-restrictions", "--layer=grants=enforce"] {
            let mut facts = facts.clone();
            let sets = facts.daemonsets.as_mut().unwrap();
            let args = &mut sets[0].spec.template.spec.containers[0].args;
            args.push(flag.into());
            assert_eq!(check(&facts).unwrap().status(), Status::Ok, "{flag}");
        }
        facts.daemonsets = Ok(Vec::new());
        assert!(check(&facts).is_err());
    }
}
