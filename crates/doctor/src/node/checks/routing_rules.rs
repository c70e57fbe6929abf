//! The routing rules that block what the redirect misses are in the kernel.

use rolegate_redirect::State;

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let state = *facts.routing.as_ref()?;
    // Without a redirect of rolegate there are no routing rules either.
    let has_rules = facts.rules.as_ref().map_or(true, |rules| !rules.is_empty());
    let message = match state {
        State::InPlace => return Ok(Outcome::ok("in place")),
        State::Missing if !has_rules => return Ok(Outcome::ok("absent, like the redirect")),
        State::Missing => {
            "the routing rules are missing: packets that the redirect does not see may reach the real metadata service"
        }
        State::Altered => {
            "the routing rules are missing in part: packets that the redirect does not see may reach the real metadata service"
        }
    };
    let advice = "the agent restores them; if they stay away, its kernel lacks policy routing or another program removes them: rolegate redirect show";
    Ok(Finding::problem(message).advice(advice).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn routing_rules_belong_to_the_redirect() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        for state in [State::Missing, State::Altered] {
            facts.routing = Ok(state);
            assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        }
        facts.routing = Ok(State::Missing);
        facts.rules = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
    }
}
