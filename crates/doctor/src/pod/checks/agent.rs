//! The agent on the pod's node is ready.

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    let agents = facts.agents.as_ref()?;
    let node = &facts.existing()?.spec.node_name;
    let namespace = &facts.agent_namespace;
    if let Some(agent) = agents
        .iter()
        .find(|agent| agent.is_live() && agent.is_ready())
    {
        let name = &agent.metadata.name;
        return Ok(Outcome::ok(format!("{name} on node {node} is ready")));
    }
    Ok(match agents.iter().find(|agent| agent.is_live()) {
        Some(agent) => {
            let name = &agent.metadata.name;
            let message = format!(
                "agent {name} on node {node} is not ready: {}",
                agent.trouble()
            );
            let exec = format!(
                "kubectl -n {namespace} logs {name}, or `rolegate doctor node` on that node"
            );
            Finding::problem(message).advice(exec).into()
        }
        None => {
            let message = format!(
                "node {node} has no agent in namespace {namespace}: pods of this node get no credentials, or the node's role"
            );
            Finding::problem(message)
                .advice("rolegate doctor names the reason")
                .into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::tests::healthy;
    use super::*;
    use crate::check::Status;

    #[test]
    fn the_node_needs_a_ready_agent() {
        let mut facts = healthy();
        assert_eq!(
            check(&facts).unwrap(),
            Outcome::ok("agent-a on node a is ready")
        );
        facts.agents.as_mut().unwrap()[0].status.conditions.clear();
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert!(
            outcome.findings[0]
                .advice
                .as_ref()
                .unwrap()
                .contains("logs agent-a")
        );
        facts.agents = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts.agents = Err(Unread::TimedOut("x".into()));
        assert!(check(&facts).is_err());
    }
}
