//! From inside each pod of the node, the metadata address leads to the agent.

use rolegate_redirect::check::CheckState;

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let pods = facts.pods.as_ref()?;
    if pods.is_empty() {
        return Err(Unread::Depends(
            "no pod with a network of its own runs on this node".into(),
        ));
    }
    let mut findings = Vec::new();
    let mut unread = facts.more_pods;
    for pod in pods {
        let name = &pod.name;
        let Ok(probe) = &pod.probe else {
            unread += 1;
            continue;
        };
        let finding = match probe.state() {
            CheckState::Ok => continue,
            CheckState::Open => Finding::problem(format!("from {name}: {probe}")).advice(
                "pods reach the node's role: see the checks redirect-rules, interface and foreign-rules, and docs/explanation/redirect.md",
            ),
            CheckState::Blocked => Finding::problem(format!("from {name}: {probe}")).advice(
                "these pods get no credentials: see the checks agent and interface; a NetworkPolicy may block 169.254.169.254",
            ),
        };
        findings.push(finding);
    }
    if unread > 0 {
        findings.push(Finding::not_checked(format!(
            "{unread} pods were not tested"
        )));
    }
    let reached = facts.count(CheckState::Ok);
    let all = pods.len() + facts.more_pods;
    Ok(Outcome::of(
        format!("from {reached} of {all} pods the metadata address leads to the agent"),
        findings,
    ))
}

#[cfg(test)]
mod tests {
    use rolegate_redirect::check::Outcome as Target;

    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::{healthy, pod};

    #[test]
    fn pods_that_do_not_reach_the_agent_are_named() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        for target in [
            Target::Open("200".into()),
            Target::Blocked("timeout".into()),
        ] {
            let mut facts = facts.clone();
            facts
                .pods
                .as_mut()
                .unwrap()
                .push(pod("cni-3", "eni3", target));
            let outcome = check(&facts).unwrap();
            assert_eq!(outcome.status(), Status::Problem);
            assert!(
                outcome.findings[0].message.starts_with("from cni-3: "),
                "{outcome:?}"
            );
            assert!(
                outcome.summary.starts_with("from 2 of 3 pods"),
                "{outcome:?}"
            );
        }
        facts.more_pods = 4;
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
        facts.pods = Ok(Vec::new());
        assert!(check(&facts).is_err());
    }
}
