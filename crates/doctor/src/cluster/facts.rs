//! The facts about a cluster.

use jiff::Timestamp;

use super::process::{LABEL, Process};
use super::rights::{ProcessFlags, Right};
use crate::objects::{
    Definition, EndpointSlice, Lease, Node, Pod, Rule, ServerVersion, WebhookConfiguration,
    Workload,
};
use crate::reading::{Reading, Unread};
use crate::readyz::ReadyReport;

/// The `/readyz` of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodReadiness {
    /// The pod's name.
    pub(crate) pod: String,
    /// The answer.
    pub(crate) report: Reading<ReadyReport>,
}

/// A right, and the API server's answer whether a service account has it.
#[derive(Debug, Clone)]
pub(crate) struct ReviewedRight {
    /// The service account as `namespace/name`.
    pub(crate) account: String,
    /// The right.
    pub(crate) right: Right,
    /// True if the account has it.
    pub(crate) is_allowed: bool,
}

/// Everything that the checks read.
#[derive(Debug, Clone)]
pub(crate) struct ClusterFacts {
    /// The time of the examination.
    pub(crate) now: Timestamp,
    /// The namespace of rolegate.
    pub(crate) namespace: String,
    /// The version of the API server.
    pub(crate) version: Reading<ServerVersion>,
    /// The installed definitions of group `rolegate.dev`.
    pub(crate) definitions: Reading<Vec<Definition>>,
    /// The nodes.
    pub(crate) nodes: Reading<Vec<Node>>,
    /// The DaemonSets of agents.
    pub(crate) daemonsets: Reading<Vec<Workload>>,
    /// The Deployments of the other processes.
    pub(crate) deployments: Reading<Vec<Workload>>,
    /// The pods of all processes.
    pub(crate) pods: Reading<Vec<Pod>>,
    /// The `/readyz` of the pods.
    pub(crate) readiness: Vec<PodReadiness>,
    /// The reviewed rights of the processes' service accounts.
    pub(crate) rights: Reading<Vec<ReviewedRight>>,
    /// The RolegateConfig `cluster`, in a list of at most one.
    pub(crate) configs: Reading<Vec<Rule>>,
    /// The RoleGrants.
    pub(crate) grants: Reading<Vec<Rule>>,
    /// The ValidatingWebhookConfiguration.
    pub(crate) webhook: Reading<Option<WebhookConfiguration>>,
    /// The EndpointSlices of the webhook's Service.
    pub(crate) endpoints: Reading<Vec<EndpointSlice>>,
    /// The controller's Lease.
    pub(crate) lease: Reading<Option<Lease>>,
}

impl ClusterFacts {
    /// Returns the workloads of a process.
    pub(crate) fn workloads(&self, process: Process) -> Reading<Vec<&Workload>> {
        let all = match process {
            Process::Agent => self.daemonsets.as_ref()?,
            Process::Broker | Process::Admission | Process::Controller => {
                self.deployments.as_ref()?
            }
        };
        let of = all
            .iter()
            .filter(|workload| is_of(&workload.metadata, process));
        Ok(of.collect())
    }

    /// Returns the live pods of a process.
    pub(crate) fn pods(&self, process: Process) -> Reading<Vec<&Pod>> {
        let all = self.pods.as_ref()?.iter();
        let live = all.filter(|pod| pod.is_live() && is_of(&pod.metadata, process));
        Ok(live.collect())
    }

    /// Returns whether agents use a broker.
    pub(crate) fn has_brokered_agents(&self) -> Reading<bool> {
        let agents = self.workloads(Process::Agent)?;
        Ok(agents.into_iter().any(is_brokered))
    }

    /// Returns the modes of the layers in the RolegateConfig, by name; `None` without one.
    pub(crate) fn modes(&self) -> Reading<Option<Vec<(String, String)>>> {
        let configs = match &self.configs {
            Err(Unread::NotInstalled(_)) => return Ok(None),
            configs => configs.as_ref()?,
        };
        Ok(configs.first().map(|config| {
            let layers = rolegate_core::layer::LayerId::ALL.iter();
            layers
                .map(|layer| {
                    let mode = config.spec.pointer(&format!("/layers/{}", layer.as_str()));
                    let mode = mode.and_then(serde_json::Value::as_str).unwrap_or("off");
                    (layer.as_str().to_owned(), mode.to_owned())
                })
                .collect()
        }))
    }
}

/// Returns whether a workload runs agents that use a broker.
pub(crate) fn is_brokered(workload: &Workload) -> bool {
    let mut containers = workload.spec.template.spec.containers.iter();
    containers.any(|container| container.flag("--broker", "ROLEGATE_BROKER").is_some())
}

/// Returns the flags on which a workload's rights depend.
pub(crate) fn process_flags(workload: &Workload) -> ProcessFlags {
    let mut containers = workload.spec.template.spec.containers.iter();
    ProcessFlags {
        is_brokered: is_brokered(workload),
        removes_taints: containers.any(|container| {
            let taint = container.flag("--startup-taint", "ROLEGATE_STARTUP_TAINT");
            taint.is_some_and(|taint| !taint.is_empty())
        }),
    }
}

fn is_of(metadata: &crate::objects::Metadata, process: Process) -> bool {
    let label = metadata.labels.get(LABEL).map(String::as_str);
    label == Some(process.name()) || metadata.name == process.name()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::object;

    /// Returns facts of a cluster with two nodes and everything in place.
    pub(crate) fn healthy() -> ClusterFacts {
        let template = json!({"spec": {
            "serviceAccountName": "rolegate-agent",
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "containers": [{"name": "agent", "image": "r/rolegate:1", "args": ["agent"]}],
        }});
        let agents = json!({"metadata": {"name": "rolegate-agent", "namespace": "rolegate-system"},
            "spec": {"template": template}});
        let deployment = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "rolegate-system"},
                "spec": {"replicas": 2, "template": {"spec": {"serviceAccountName": name}}},
                "status": {"readyReplicas": 2}})
        };
        ClusterFacts {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            namespace: "rolegate-system".into(),
            version: Ok(object(
                json!({"major": "1", "minor": "33+", "gitVersion": "v1.33.1"}),
            )),
            definitions: Ok(Vec::new()),
            nodes: Ok(vec![node("a"), node("b")]),
            daemonsets: Ok(vec![object(agents)]),
            deployments: Ok(vec![
                object(deployment("rolegate-admission")),
                object(deployment("rolegate-controller")),
            ]),
            pods: Ok(vec![
                pod("rolegate-agent", "agent-a", "a"),
                pod("rolegate-agent", "agent-b", "b"),
                pod("rolegate-admission", "admission-0", "a"),
            ]),
            readiness: Vec::new(),
            rights: Ok(Vec::new()),
            configs: Ok(vec![rule(json!({"layers": {"grants": "enforce"}}), "True")]),
            grants: Ok(vec![rule(json!({}), "True")]),
            webhook: Ok(None),
            endpoints: Ok(Vec::new()),
            lease: Ok(None),
        }
    }

    pub(crate) fn node(name: &str) -> Node {
        object(json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}))
    }

    pub(crate) fn pod(process: &str, name: &str, node: &str) -> Pod {
        object(json!({
            "metadata": {"name": name, "namespace": "rolegate-system", "labels": {LABEL: process}},
            "spec": {"nodeName": node, "hostNetwork": process == "rolegate-agent",
                "containers": [{"name": "x", "image": "r/rolegate:1"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "x", "image": "r/rolegate:1", "imageID": "sha256:1"}]},
        }))
    }

    pub(crate) fn rule(spec: Value, ready: &str) -> Rule {
        object(json!({
            "metadata": {"name": "cluster", "generation": 1}, "spec": spec,
            "status": {"observedGeneration": 1, "conditions": [
                {"type": "Ready", "status": ready, "reason": "Invalid", "message": "no such field"}]},
        }))
    }

    #[test]
    fn modes_default_to_off() {
        let facts = healthy();
        let modes = facts.modes().unwrap().unwrap();
        let mode = |name: &str| modes.iter().find(|(layer, _)| layer == name).unwrap();
        assert_eq!(mode("grants").1, "enforce");
        assert_eq!(mode("rego").1, "off");
    }

    #[test]
    fn agents_with_a_broker_are_recognized() {
        let mut facts = healthy();
        assert!(!facts.has_brokered_agents().unwrap());
        if let Ok(sets) = &mut facts.daemonsets {
            let container = &mut sets[0].spec.template.spec.containers[0];
            container.args.push("--broker=https://b".into());
        }
        assert!(facts.has_brokered_agents().unwrap());
    }
}
