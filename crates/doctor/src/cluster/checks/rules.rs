//! RoleGrants and the RolegateConfig are in effect, by their status.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use crate::check::{Finding, Outcome};
use crate::objects::Rule;
use crate::reading::{Reading, Unread};

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let has_controller = !facts.workloads(Process::Controller)?.is_empty();
    let mut findings = Vec::new();
    let mut numbers = Vec::new();
    for (kind, plural, rules) in [
        ("RolegateConfig", "rolegateconfig", &facts.configs),
        ("RoleGrant", "rolegrant", &facts.grants),
    ] {
        let rules = installed(rules)?;
        numbers.push(format!(
            "{} {kind}{}",
            rules.len(),
            if rules.len() == 1 { "" } else { "s" }
        ));
        findings.extend(rules.iter().filter_map(|rule| invalid(kind, plural, rule)));
        let old = rules.iter().filter(|rule| is_unseen(rule)).count();
        if old > 0 {
            findings.push(unseen(kind, old, has_controller));
        }
    }
    Ok(Outcome::of(numbers.join(", "), findings))
}

/// Returns the objects of a kind. A kind that is not installed has none, which another check
/// reports.
fn installed(rules: &Reading<Vec<Rule>>) -> Reading<&[Rule]> {
    match rules {
        Err(Unread::NotInstalled(_)) => Ok(&[]),
        rules => Ok(rules.as_ref()?),
    }
}

fn invalid(kind: &str, plural: &str, rule: &Rule) -> Option<Finding> {
    let mut conditions = rule.status.conditions.iter();
    let failing = conditions.find(|one| one.kind == "Ready" && one.status == "False")?;
    let name = &rule.metadata.name;
    let message = format!("{kind} {name} is not in effect: {}", failing.message);
    let describe = format!("kubectl describe {plural} {name}");
    Some(Finding::problem(message).advice(describe))
}

/// Returns whether no status describes the current object.
fn is_unseen(rule: &Rule) -> bool {
    rule.status.observed_generation < rule.metadata.generation
}

fn unseen(kind: &str, number: usize, has_controller: bool) -> Finding {
    if !has_controller {
        let message = format!(
            "the validity of {number} {kind} objects is unknown: without a controller they have no status"
        );
        return Finding::not_checked(message).advice("kubectl get … -o yaml > rules.yaml; rolegate policy check --rules rules.yaml -f rules.yaml");
    }
    let message = format!("the status of {number} {kind} objects is older than the objects");
    Finding::warning(message).advice("see the checks controller and leader")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::{healthy, rule};

    #[test]
    fn objects_that_are_not_in_effect_are_named() {
        let mut facts = healthy();
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome, Outcome::ok("1 RolegateConfig, 1 RoleGrant"));
        let mut bad = rule(json!({}), "False");
        bad.metadata.name = "payments".into();
        facts.grants.as_mut().unwrap().push(bad);
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        let message = &outcome.findings[0].message;
        assert_eq!(
            message,
            "RoleGrant payments is not in effect: no such field"
        );
    }

    #[test]
    fn an_old_status_is_a_warning_and_none_is_not_checked() {
        let mut facts = healthy();
        facts.grants.as_mut().unwrap()[0].metadata.generation = Some(2);
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.deployments = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
    }

    #[test]
    fn kinds_that_are_not_installed_have_no_objects() {
        let mut facts = healthy();
        facts.configs = Err(Unread::NotInstalled("x".into()));
        facts.grants = Err(Unread::NotInstalled("x".into()));
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.grants = Err(Unread::TimedOut("x".into()));
        assert!(check(&facts).is_err());
    }
}
