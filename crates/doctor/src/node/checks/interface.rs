//! The redirect matches the interfaces on which packets of the node's pods arrive.

use std::collections::BTreeMap;

use rolegate_redirect::rules::InterfacePattern;

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let rules = facts.rules.as_ref()?;
    let mut patterns = rules
        .iter()
        .filter_map(|(_, listing)| InterfacePattern::of_listing(listing));
    let Some(pattern) = patterns.next() else {
        return Err(Unread::Depends(
            "there is no redirect whose interfaces could be compared".into(),
        ));
    };
    let mut missed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut matched = 0;
    let mut unread = 0;
    for pod in facts.pods.as_ref()? {
        match &pod.interfaces {
            Ok(interfaces) if interfaces.is_empty() => unread += 1,
            Ok(interfaces) => {
                let wrong = interfaces.iter().filter(|name| !pattern.matches(name));
                let wrong: Vec<_> = wrong.collect();
                matched += usize::from(wrong.is_empty());
                for name in wrong {
                    *missed.entry(name).or_default() += 1;
                }
            }
            Err(_) => unread += 1,
        }
    }
    let mut findings = Vec::new();
    if !missed.is_empty() {
        let names = missed
            .iter()
            .map(|(name, number)| format!("{name} ({number})"));
        let names = names.collect::<Vec<_>>().join(", ");
        let message = format!(
            "packets of pods arrive on {names}, which the redirect ({pattern}) does not match: these pods get no credentials"
        );
        let advice = match &facts.detected {
            Ok(found) => format!(
                "set --host-interface={} or auto for the agent, by {}",
                found.interface, found.source
            ),
            Err(_) => "set --host-interface for the agent to a pattern of these interfaces".into(),
        };
        findings.push(Finding::problem(message).advice(advice));
    }
    if unread > 0 {
        let message = format!("the interfaces of {unread} pods are not known");
        findings.push(Finding::not_checked(message));
    }
    if matched == 0 && findings.is_empty() {
        let message = format!("no pod runs whose interface could be compared with {pattern}");
        findings.push(Finding::not_checked(message));
    }
    Ok(Outcome::of(
        format!("{pattern} matches the interfaces of {matched} pods"),
        findings,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::{healthy, pod, redirected};

    #[test]
    fn interfaces_that_are_missed_are_named() {
        let mut facts = healthy();
        let outcome = check(&facts).unwrap();
        assert_eq!(
            outcome,
            Outcome::ok("eni+ matches the interfaces of 2 pods")
        );
        let pods = facts.pods.as_mut().unwrap();
        pods.extend(["cni-3", "cni-4"].map(|name| pod(name, "cali9", redirected())));
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert!(outcome.summary.ends_with("of 2 pods"), "{outcome:?}");
        let found = &outcome.findings[0];
        assert!(found.message.contains("arrive on cali9 (2)"), "{found:?}");
        assert!(
            found
                .advice
                .as_ref()
                .unwrap()
                .contains("--host-interface=eni+"),
            "{found:?}"
        );
    }

    #[test]
    fn without_pods_or_rules_nothing_is_compared() {
        let mut facts = healthy();
        facts.pods = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
        facts
            .pods
            .as_mut()
            .unwrap()
            .push(pod("cni-3", "eni9", redirected()));
        facts.pods.as_mut().unwrap()[0].interfaces = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
        facts.rules = Ok(Vec::new());
        assert!(check(&facts).is_err());
    }
}
