//! Brokers are ready, if agents use them.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use super::replicas::ready;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let workloads = facts.workloads(Process::Broker)?;
    let is_needed = facts.has_brokered_agents()?;
    Ok(match (workloads.is_empty(), is_needed) {
        (true, false) => Outcome::ok("not installed; agents decide themselves"),
        (true, true) => {
            let namespace = &facts.namespace;
            let message = format!(
                "agents use a broker, and namespace {namespace} has no Deployment {}",
                Process::Broker.name()
            );
            let finding = Finding::problem(message);
            finding
                .advice("kubectl apply -f deploy/rolegate-broker.yaml")
                .into()
        }
        (false, is_needed) => {
            let mut outcome = ready(facts, Process::Broker, &workloads)?;
            if !is_needed {
                let message =
                    "no agent uses the brokers: the agents' DaemonSet does not set --broker";
                outcome.findings.push(Finding::warning(message));
            }
            outcome
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;

    #[test]
    fn agents_that_use_a_broker_need_one() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        let sets = facts.daemonsets.as_mut().unwrap();
        let args = &mut sets[0].spec.template.spec.containers[0].args;
        args.push("--broker=https://b".into());
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
        let deployments = facts.deployments.as_mut().unwrap();
        let mut broker = deployments[0].clone();
        broker.metadata.name = Process::Broker.name().into();
        deployments.push(broker);
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.daemonsets = healthy().daemonsets;
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
    }
}
