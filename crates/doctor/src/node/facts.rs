//! The facts about a node.

use std::net::SocketAddr;
use std::path::PathBuf;

use rolegate_redirect::check::{CheckResult, CheckState};
use rolegate_redirect::{Detected, ForeignRule, State};

use crate::reading::Reading;
use crate::readyz::ReadyReport;

/// The answer at the agent's address of metrics and health.
#[derive(Debug, Clone)]
pub(crate) enum AgentAnswer {
    /// The agent's `/readyz`.
    Report(ReadyReport),
    /// No process listens.
    Nothing(String),
    /// The response is not that of an agent.
    Other,
}

/// A pod on the node, by its network namespace.
#[derive(Debug, Clone)]
pub(crate) struct PodNetwork {
    /// The name of the namespace's file.
    pub(crate) name: String,
    /// The interfaces on which the host receives its packets.
    pub(crate) interfaces: Reading<Vec<String>>,
    /// The targets of the metadata addresses from inside.
    pub(crate) probe: Reading<CheckResult>,
}

/// The node's identity at AWS.
#[derive(Debug, Clone)]
pub(crate) struct InstanceIdentity {
    /// The instance's ID.
    pub(crate) id: String,
    /// The name of the role of the instance profile, if it has one.
    pub(crate) role: Option<String>,
}

/// Everything that the checks read.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    /// The host's name.
    pub(crate) host: Option<String>,
    /// The address of the agent's metrics and health.
    pub(crate) metrics_address: SocketAddr,
    /// The answer at that address.
    pub(crate) agent: Reading<AgentAnswer>,
    /// rolegate's rules in the kernel: the names of the backends that list them, and the listing.
    pub(crate) rules: Reading<Vec<(String, String)>>,
    /// The state of the routing rules.
    pub(crate) routing: Reading<State>,
    /// The interfaces of pods, as the agent's `--host-interface=auto` finds them.
    pub(crate) detected: Reading<Detected>,
    /// The pods that were examined.
    pub(crate) pods: Reading<Vec<PodNetwork>>,
    /// The number of pods that were left out because there are too many.
    pub(crate) more_pods: usize,
    /// The rules of other programs.
    pub(crate) foreign: Vec<ForeignRule>,
    /// The reasons why rules of other programs could not be listed.
    pub(crate) foreign_failed: Vec<String>,
    /// True if the metadata address is an address of this host.
    pub(crate) is_metadata_local: bool,
    /// The response of the node's metadata service.
    pub(crate) instance: Reading<InstanceIdentity>,
    /// The environment variables that select AWS credentials.
    pub(crate) credential_variables: Vec<String>,
    /// The directory of CNI results.
    pub(crate) cni_results_dir: PathBuf,
    /// The number of its records.
    pub(crate) cni_results: Result<usize, String>,
}

impl NodeFacts {
    /// Returns the number of pods by the target of their metadata address.
    pub(crate) fn count(&self, state: CheckState) -> usize {
        let pods = self.pods.as_deref().unwrap_or_default().iter();
        let probes = pods.filter_map(|pod| pod.probe.as_ref().ok());
        probes.filter(|probe| probe.state() == state).count()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rolegate_redirect::check::Outcome;

    use super::*;

    /// Returns facts of a node with two pods and everything in place.
    pub(crate) fn healthy() -> NodeFacts {
        let listing = "iifname \"eni*\" ip daddr 169.254.169.254 tcp dport 80 dnat ip to \
            10.0.0.1:8181 comment \"rolegate: redirect to the agent\"";
        NodeFacts {
            host: Some("a".into()),
            metrics_address: ([127, 0, 0, 1], 9090).into(),
            agent: Ok(AgentAnswer::Report(ReadyReport {
                ready: true,
                ..ReadyReport::default()
            })),
            rules: Ok(vec![("nftables".into(), listing.into())]),
            routing: Ok(State::InPlace),
            detected: Ok(Detected {
                interface: "eni+".parse().unwrap(),
                source: "CNI plugin aws-cni".into(),
            }),
            pods: Ok(vec![
                pod("cni-1", "eni1", redirected()),
                pod("cni-2", "eni2", redirected()),
            ]),
            more_pods: 0,
            foreign: Vec::new(),
            foreign_failed: Vec::new(),
            is_metadata_local: false,
            instance: Ok(InstanceIdentity {
                id: "i-1".into(),
                role: Some("node".into()),
            }),
            credential_variables: Vec::new(),
            cni_results_dir: "/var/lib/cni/results".into(),
            cni_results: Ok(2),
        }
    }

    pub(crate) fn redirected() -> Outcome {
        Outcome::Redirected
    }

    pub(crate) fn pod(name: &str, interface: &str, v4: Outcome) -> PodNetwork {
        let v6 = Outcome::Blocked("no route".into());
        PodNetwork {
            name: name.into(),
            interfaces: Ok(vec![interface.into()]),
            probe: Ok(CheckResult { v4, v6 }),
        }
    }
}
