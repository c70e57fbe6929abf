//! The agent of this node runs and is ready.

use super::super::facts::{AgentAnswer, NodeFacts};
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let address = facts.metrics_address;
    let other =
        "if the agent has another --metrics-address or --metrics-port, set --metrics-address here";
    Ok(match facts.agent.as_ref()? {
        AgentAnswer::Report(report) => {
            let findings = report.findings("agent");
            let state = if report.ready { "ready" } else { "not ready" };
            Outcome::of(format!("{state}, at {address}"), findings)
        }
        AgentAnswer::Nothing(why) => {
            let message = format!("no agent listens at {address}: {why}");
            Finding::problem(message).advice(other).into()
        }
        AgentAnswer::Other => {
            let message = format!("another program than an agent listens at {address}");
            Finding::problem(message).advice(other).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn the_agent_must_answer_and_be_ready() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        if let Ok(AgentAnswer::Report(report)) = &mut facts.agent {
            report.ready = false;
            report.failing.insert("redirect".into(), "gone".into());
        }
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert_eq!(outcome.findings[0].message, "agent: redirect: gone");
        for answer in [AgentAnswer::Nothing("refused".into()), AgentAnswer::Other] {
            facts.agent = Ok(answer);
            assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        }
    }
}
