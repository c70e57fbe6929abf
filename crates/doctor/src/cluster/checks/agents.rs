//! Every Linux node has a ready agent.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use super::scheduling::without_pod;
use crate::check::{Finding, Outcome};
use crate::objects::Node;
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let sets = facts.workloads(Process::Agent)?;
    let pods = facts.pods(Process::Agent)?;
    if sets.is_empty() && pods.is_empty() {
        let namespace = &facts.namespace;
        let message = format!(
            "namespace {namespace} has no DaemonSet {}",
            Process::Agent.name()
        );
        let finding = Finding::problem(message).advice(
            "kubectl apply -f deploy/rolegate-agent.yaml, or name the namespace of the agents with --agent-namespace",
        );
        return Ok(finding.into());
    }
    let nodes = facts.nodes.as_ref()?;
    let nodes: Vec<_> = nodes.iter().filter(|node| needs_agent(node)).collect();
    let mut findings = Vec::new();
    for node in &nodes {
        let name = &*node.metadata.name;
        let of_node: Vec<_> = pods.iter().filter(|pod| pod.node() == Some(name)).collect();
        if of_node.iter().any(|pod| pod.is_ready()) {
            continue;
        }
        let Some(pod) = of_node.first() else {
            findings.push(without_pod(node, &sets));
            continue;
        };
        let (namespace, agent) = (&pod.metadata.namespace, &pod.metadata.name);
        let message = format!("node {name}: agent {agent} is not ready: {}", pod.trouble());
        findings.push(Finding::problem(message).advice(format!(
            "kubectl -n {namespace} logs {agent}, or `rolegate doctor node` on that node"
        )));
    }
    let (all, failing) = (nodes.len(), findings.len());
    Ok(Outcome::of(
        match failing {
            0 => format!("ready on all {all} Linux nodes"),
            _ => format!("{failing} of {all} Linux nodes have no ready agent"),
        },
        findings,
    ))
}

/// Returns whether pods of the node can reach a metadata service. Fargate has none.
fn needs_agent(node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.get(key).map(String::as_str);
    let is_linux = label("kubernetes.io/os").is_none_or(|os| os == "linux");
    is_linux && label("eks.amazonaws.com/compute-type") != Some("fargate")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::{healthy, node, pod};
    use crate::objects::object;

    #[test]
    fn nodes_without_a_ready_agent_are_named() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.nodes.as_mut().unwrap().push(node("c"));
        let mut crashing = pod("rolegate-agent", "agent-b", "b");
        crashing.status.conditions.clear();
        facts.pods.as_mut().unwrap()[1] = crashing;
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.summary, "2 of 3 Linux nodes have no ready agent");
        let messages: Vec<_> = outcome.findings.iter().map(|one| &*one.message).collect();
        assert!(
            messages[0].starts_with("node b: agent agent-b is not ready"),
            "{messages:?}"
        );
        assert!(
            messages[1].starts_with("node c has no agent"),
            "{messages:?}"
        );
    }

    #[test]
    fn a_ready_successor_is_enough() {
        let mut facts = healthy();
        let mut old = pod("rolegate-agent", "agent-old", "a");
        old.status.conditions.clear();
        facts.pods.as_mut().unwrap().insert(0, old);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
    }

    #[test]
    fn windows_and_fargate_have_no_agents() {
        let mut facts = healthy();
        for labels in [
            json!({"kubernetes.io/os": "windows"}),
            json!({"eks.amazonaws.com/compute-type": "fargate"}),
        ] {
            let other = object(json!({"metadata": {"name": "w", "labels": labels}}));
            facts.nodes.as_mut().unwrap().push(other);
        }
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
    }

    #[test]
    fn no_daemonset_is_a_problem_and_no_right_is_not_checked() {
        let mut facts = healthy();
        facts.daemonsets = Ok(Vec::new());
        facts.pods = Ok(Vec::new());
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        facts = healthy();
        facts.nodes = Err(Unread::TimedOut("nodes".into()));
        assert!(check(&facts).is_err());
    }
}
