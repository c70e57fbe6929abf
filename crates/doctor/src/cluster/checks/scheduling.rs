//! The reasons why a DaemonSet has no pod on a node.

use crate::check::Finding;
use crate::objects::{Node, PodSpec, Taint, Toleration, Workload};

/// Taints that the DaemonSet controller tolerates for every pod.
const TOLERATED: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/network-unavailable",
];

/// Returns the finding about a node without a pod of these DaemonSets.
pub(super) fn without_pod(node: &Node, sets: &[&Workload]) -> Finding {
    let name = &node.metadata.name;
    let Some(set) = sets.first() else {
        return Finding::problem(format!("node {name} has no agent"));
    };
    let of = set.metadata.full_name();
    let spec = &set.spec.template.spec;
    let refusing = node.spec.taints.iter().find(|taint| refuses(taint, spec));
    if let Some(taint) = refusing {
        let shown = shown(taint);
        let message =
            format!("node {name} has no agent: DaemonSet {of} does not tolerate the taint {shown}");
        return Finding::problem(message).advice(format!(
            "add the toleration `operator: Exists` to the pod template of DaemonSet {of}, as in deploy/rolegate-agent.yaml"
        ));
    }
    let labels = &node.metadata.labels;
    let mut selector = spec.node_selector.iter();
    if let Some((key, value)) = selector.find(|(key, value)| labels.get(*key) != Some(*value)) {
        let message = format!(
            "node {name} has no agent: it lacks the label {key}={value} that DaemonSet {of} selects"
        );
        return Finding::problem(message).advice(format!(
            "remove the label from nodeSelector of DaemonSet {of}, or label the node; pods on nodes without an agent reach the node's role"
        ));
    }
    let affinity = "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let describe = format!(
        "kubectl -n {} describe daemonset {}",
        set.metadata.namespace, set.metadata.name
    );
    if spec.affinity.pointer(affinity).is_some() {
        let message =
            format!("node {name} has no agent: the node affinity of DaemonSet {of} may exclude it");
        return Finding::problem(message).advice(describe);
    }
    let message = format!("node {name} has no agent: DaemonSet {of} has not created a pod for it");
    Finding::problem(message).advice(describe)
}

fn refuses(taint: &Taint, spec: &PodSpec) -> bool {
    let is_hard = matches!(&*taint.effect, "NoSchedule" | "NoExecute");
    let by_controller = TOLERATED.contains(&&*taint.key);
    let mut tolerations = spec.tolerations.iter();
    is_hard && !by_controller && !tolerations.any(|one| tolerates(one, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let exists = toleration.operator == "Exists";
    let key = (toleration.key.is_empty() && exists) || toleration.key == taint.key;
    let value = exists || toleration.value == taint.value;
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    key && value && effect
}

fn shown(taint: &Taint) -> String {
    let Taint { key, value, effect } = taint;
    match &**value {
        "" => format!("{key}:{effect}"),
        value => format!("{key}={value}:{effect}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::object;

    fn message(node: serde_json::Value, spec: serde_json::Value) -> String {
        let set: Workload = object(json!({"metadata": {"name": "d", "namespace": "n"},
            "spec": {"template": {"spec": spec}}}));
        without_pod(&object(node), &[&set]).message
    }

    #[test]
    fn the_reason_is_a_taint_or_the_selector() {
        let tainted = |effect: &str| {
            json!({"metadata": {"name": "a"},
                "spec": {"taints": [{"key": "gpu", "value": "yes", "effect": effect}]}})
        };
        let found = message(tainted("NoSchedule"), json!({}));
        assert!(
            found.contains("does not tolerate the taint gpu=yes:NoSchedule"),
            "{found}"
        );
        for spec in [
            json!({"tolerations": [{"operator": "Exists"}]}),
            json!({"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}),
            json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
        ] {
            let found = message(tainted("NoSchedule"), spec);
            assert!(found.contains("has not created"), "{found}");
        }
        assert!(message(tainted("PreferNoSchedule"), json!({})).contains("has not created"));
        let cordoned = json!({"metadata": {"name": "a"}, "spec": {"taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}});
        assert!(message(cordoned, json!({})).contains("has not created"));
        let node = json!({"metadata": {"name": "a", "labels": {"pool": "x"}}});
        let found = message(node, json!({"nodeSelector": {"pool": "y"}}));
        assert!(found.contains("lacks the label pool=y"), "{found}");
    }
}
