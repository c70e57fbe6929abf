//! Kubernetes' objects, reduced to the fields that checks read. All other fields are ignored, so
//! that objects of any version of the API can be read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The metadata of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) generation: Option<i64>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) owner_references: Vec<Owner>,
}

/// A reference to the owner of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// The response of `/version`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServerVersion {
    pub(crate) major: String,
    pub(crate) minor: String,
    pub(crate) git_version: String,
}

/// A namespace.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Namespace {
    pub(crate) metadata: Metadata,
}

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) spec: NodeSpec,
}

/// The specification of a node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeSpec {
    pub(crate) taints: Vec<Taint>,
}

/// A taint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

/// A toleration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Toleration {
    pub(crate) key: String,
    pub(crate) operator: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

/// A DaemonSet or a Deployment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Workload {
    pub(crate) metadata: Metadata,
    pub(crate) spec: WorkloadSpec,
    pub(crate) status: WorkloadStatus,
}

/// The specification of a workload.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WorkloadSpec {
    pub(crate) replicas: Option<i64>,
    pub(crate) template: Template,
}

/// A pod template.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Template {
    pub(crate) spec: PodSpec,
}

/// The status of a workload.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WorkloadStatus {
    pub(crate) ready_replicas: i64,
    pub(crate) conditions: Vec<Condition>,
}

/// A condition of an object's status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

/// The specification of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: String,
    pub(crate) host_network: bool,
    pub(crate) service_account_name: String,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) affinity: Value,
    pub(crate) containers: Vec<Container>,
    pub(crate) init_containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<Variable>,
}

/// An environment variable.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// The status of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) container_statuses: Vec<ContainerStatus>,
}

/// The status of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    pub(crate) name: String,
    pub(crate) image: String,
    #[serde(rename = "imageID")]
    pub(crate) image_id: String,
    pub(crate) restart_count: i64,
    pub(crate) state: ContainerState,
    pub(crate) last_state: ContainerState,
}

/// The state of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerState {
    pub(crate) waiting: Option<StateReason>,
    pub(crate) terminated: Option<StateReason>,
}

/// The reason for the state of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StateReason {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i64>,
}

/// An Event of group `events.k8s.io` in the form of version `v1`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Event {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) reporting_component: String,
    pub(crate) event_time: Option<String>,
    pub(crate) last_timestamp: Option<String>,
}

/// A custom resource of rolegate with its status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) metadata: Metadata,
    pub(crate) spec: Value,
    pub(crate) status: RuleStatus,
}

/// The status of a custom resource of rolegate.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuleStatus {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) observed_generation: Option<i64>,
}

/// A ValidatingWebhookConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WebhookConfiguration {
    pub(crate) webhooks: Vec<Webhook>,
}

/// A webhook of a configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Webhook {
    pub(crate) name: String,
    pub(crate) failure_policy: String,
    pub(crate) client_config: WebhookClient,
}

/// The endpoint of a webhook.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WebhookClient {
    /// PEM in base64.
    pub(crate) ca_bundle: String,
    pub(crate) service: Option<ServiceReference>,
}

/// A reference to a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceReference {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata,
    pub(crate) endpoints: Option<Vec<Endpoint>>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Endpoint {
    pub(crate) conditions: EndpointConditions,
}

/// The conditions of an endpoint.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointConditions {
    pub(crate) ready: Option<bool>,
}

/// A Lease.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Lease {
    pub(crate) spec: LeaseSpec,
}

/// The specification of a Lease.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LeaseSpec {
    pub(crate) holder_identity: Option<String>,
    pub(crate) lease_duration_seconds: Option<i64>,
    pub(crate) renew_time: Option<String>,
}

/// A CustomResourceDefinition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Definition {
    pub(crate) metadata: Metadata,
    pub(crate) spec: DefinitionSpec,
    pub(crate) status: RuleStatus,
}

/// The specification of a definition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DefinitionSpec {
    pub(crate) versions: Vec<DefinitionVersion>,
}

/// A version of a definition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DefinitionVersion {
    pub(crate) name: String,
    pub(crate) served: bool,
    pub(crate) schema: Value,
}

impl Metadata {
    /// Formats the name with the namespace.
    pub(crate) fn full_name(&self) -> String {
        if self.namespace.is_empty() {
            return self.name.clone();
        }
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Pod {
    /// Returns whether the pod runs, and its containers are ready.
    pub(crate) fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|one| one.kind == "Ready" && one.status == "True")
    }

    /// Returns whether the pod is live: neither finished nor terminating.
    pub(crate) fn is_live(&self) -> bool {
        let is_finished = matches!(&*self.status.phase, "Succeeded" | "Failed");
        !is_finished && self.metadata.deletion_timestamp.is_none()
    }

    /// Returns the node that the pod runs on, or that its DaemonSet made it for.
    pub(crate) fn node(&self) -> Option<&str> {
        if !self.spec.node_name.is_empty() {
            return Some(&self.spec.node_name);
        }
        let required = "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
        let fields = format!("{required}/nodeSelectorTerms/0/matchFields/0/values/0");
        self.spec.affinity.pointer(&fields)?.as_str()
    }

    /// Returns the reason why the pod is not ready, as far as its status has it.
    pub(crate) fn trouble(&self) -> String {
        for container in &self.status.container_statuses {
            let reason = |state: &StateReason| match (&*state.message, state.exit_code) {
                ("", Some(code)) => format!("{} (exit code {code})", state.reason),
                ("", None) => state.reason.clone(),
                (message, _) => format!("{}: {}", state.reason, message.trim()),
            };
            let state = &container.state;
            let now = state.waiting.as_ref().or(state.terminated.as_ref());
            let before = container.last_state.terminated.as_ref();
            match (now, before) {
                (Some(now), Some(before)) => {
                    return format!("{}; before: {}", reason(now), reason(before));
                }
                (Some(now), None) => return reason(now),
                (None, _) => {}
            }
        }
        let conditions = self.status.conditions.iter();
        let failing = conditions.filter(|one| one.status == "False" && !one.message.is_empty());
        let first = failing.min_by_key(|one| one.kind != "PodScheduled");
        match first {
            Some(condition) => condition.message.clone(),
            None if !self.status.message.is_empty() => self.status.message.clone(),
            None if !self.status.reason.is_empty() => self.status.reason.clone(),
            None => format!("phase {}", self.status.phase),
        }
    }
}

impl Container {
    /// Returns the value of a flag, from the arguments or the environment. A flag without a value,
    /// and one whose value is from another object, have an empty value.
    pub(crate) fn flag(&self, flag: &str, variable: &str) -> Option<&str> {
        let mut arguments = self.command.iter().chain(&self.args).peekable();
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix(flag) {
                Some("") => {
                    let next = arguments.peek().filter(|next| !next.starts_with("--"));
                    return Some(next.map_or("", |next| next));
                }
                Some(rest) => {
                    if let Some(value) = rest.strip_prefix('=') {
                        return Some(value);
                    }
                }
                None => {}
            }
        }
        let mut variables = self.env.iter();
        let found = variables.find(|one| one.name == variable)?;
        Some(&found.value)
    }
}

#[cfg(test)]
pub(crate) fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_are_found_in_arguments_and_environment() {
        let container: Container = object(json!({
            "args": ["agent", "--broker=https://b", "--debug", "--node", "x"],
            "env": [{"name": "ROLEGATE_LAYER", "value": "grants=enforce"}, {"name": "HOST_IP"}],
        }));
        assert_eq!(container.flag("--broker", "A"), Some("https://b"));
        assert_eq!(container.flag("--node", "A"), Some("x"));
        assert_eq!(container.flag("--debug", "A"), Some(""));
        assert_eq!(
            container.flag("--layer", "ROLEGATE_LAYER"),
            Some("grants=enforce")
        );
        assert_eq!(container.flag("--host-ip", "HOST_IP"), Some(""));
        assert_eq!(container.flag("--broke", "A"), None);
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        let pod = |status: Value| object::<Pod>(json!({"status": status})).trouble();
        let waiting = json!({"containerStatuses": [{
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"reason": "Error", "exitCode": 64}},
        }]});
        assert_eq!(
            pod(waiting),
            "CrashLoopBackOff: back-off; before: Error (exit code 64)"
        );
        let pending = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "no room"}]});
        assert_eq!(pod(pending), "no room");
        assert_eq!(pod(json!({"phase": "Unknown"})), "phase Unknown");
    }

    #[test]
    fn a_pod_without_a_node_is_of_the_node_of_its_affinity() {
        let pod: Pod = object(json!({"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}}}}));
        assert_eq!(pod.node(), Some("a"));
        assert_eq!(object::<Pod>(json!({})).node(), None);
    }
}
