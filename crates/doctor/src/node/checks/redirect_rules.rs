//! The redirect is in the kernel, once.

use rolegate_redirect::check::CheckState;

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let rules = facts.rules.as_ref()?;
    let names: Vec<_> = rules.iter().map(|(names, _)| &**names).collect();
    Ok(match &*names {
        [] => {
            let reached = facts.count(CheckState::Ok);
            let missed = facts.count(CheckState::Open) + facts.count(CheckState::Blocked);
            if reached > 0 && missed == 0 {
                return Ok(Outcome::ok(
                    "no rules of rolegate; another program redirects pods to the agent",
                ));
            }
            let message = "the kernel has no redirect rules of rolegate: pods reach the node's role, unless other rules prevent it";
            let advice = "set --redirect=auto for the agent, or see its log; until then: rolegate redirect apply --host-interface=auto --host-ip=IP";
            Finding::problem(message).advice(advice).into()
        }
        [one] => Outcome::ok(format!("in place ({one})")),
        several => {
            let several = several.join("; ");
            let message = format!("several backends have rules of rolegate: {several}");
            let advice = "set the agent's --redirect to one of them, run `rolegate redirect remove` and restart the agent; pods reach the node's role in between";
            Finding::warning(message).advice(advice).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn rules_are_in_one_backend() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap(), Outcome::ok("in place (nftables)"));
        let more = ("iptables-legacy".to_owned(), String::new());
        facts.rules.as_mut().unwrap().push(more);
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
    }

    #[test]
    fn no_rules_are_fine_only_if_pods_reach_the_agent() {
        let mut facts = healthy();
        facts.rules = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.pods = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.rules = Err(Unread::TimedOut("x".into()));
        assert!(check(&facts).is_err());
    }
}
