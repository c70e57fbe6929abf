//! The workloads whose processes decide.

use rolegate_core::names;
use rolegate_inventory::basis::WorkloadRef;
use rolegate_inventory::cluster::Cluster;
use serde_json::Value;

use super::super::errors::of_cluster;

/// The label that identifies a workload's program.
const LABEL: &str = "/metadata/labels/app.kubernetes.io~1name";

/// A kind of workload whose processes decide.
pub(super) struct Kind {
    /// Its name.
    pub(super) kind: &'static str,
    plural: &'static str,
    /// The default name and the value of the label.
    name: &'static str,
    /// The flag that selects a workload.
    pub(super) flag: &'static str,
}

/// The agents' kind.
pub(super) const AGENTS: Kind = Kind {
    kind: "DaemonSet",
    plural: "daemonsets",
    name: names::AGENT,
    flag: "--agent-daemonset",
};

/// The brokers' kind.
pub(super) const BROKERS: Kind = Kind {
    kind: "Deployment",
    plural: "deployments",
    name: names::BROKER,
    flag: "--broker-deployment",
};

/// Returns the workloads of a kind: the selected one, or all with the default name or label.
///
/// # Errors
/// Returns the reason why no workload is found.
pub(super) async fn workloads(
    cluster: &Cluster,
    kind: &Kind,
    namespace: &str,
    wanted: Option<&str>,
) -> Result<Vec<Value>, String> {
    let Kind {
        kind: what, name, ..
    } = kind;
    let mut all = cluster
        .workloads(what, kind.plural, namespace)
        .await
        .map_err(|error| of_cluster(error).to_string())?;
    all.retain(|workload| {
        let is_at = |path, name| workload.pointer(path).and_then(Value::as_str) == Some(name);
        match wanted {
            Some(wanted) => is_at("/metadata/name", wanted),
            None => is_at("/metadata/name", name) || is_at(LABEL, name),
        }
    });
    if all.is_empty() {
        let name = wanted.unwrap_or(name);
        let flag = kind.flag;
        return Err(format!(
            "cannot find {what} {name} in namespace {namespace}: set --agent-namespace and {flag}"
        ));
    }
    Ok(all)
}

/// Returns the reference to a workload.
pub(super) fn reference(kind: &Kind, workload: &Value) -> WorkloadRef {
    let text = |path| workload.pointer(path).and_then(Value::as_str);
    let generation = workload.pointer("/metadata/generation");
    WorkloadRef {
        kind: kind.kind,
        namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
        name: text("/metadata/name").unwrap_or_default().to_owned(),
        generation: generation.and_then(Value::as_i64),
    }
}

/// Returns a sentence if pods may have other flags than the template, since they precede its last
/// change.
pub(super) fn doubts(reference: &WorkloadRef, workload: &Value) -> Vec<String> {
    let number = |path| workload.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let all = number("/status/desiredNumberScheduled").max(number("/status/replicas"));
    let new = number("/status/updatedNumberScheduled").max(number("/status/updatedReplicas"));
    let seen = workload.pointer("/status/observedGeneration");
    let is_seen = seen.is_none() || seen.and_then(Value::as_i64) >= reference.generation;
    if all == 0 || (is_seen && new >= all) {
        return Vec::new();
    }
    let old = if is_seen { all - new } else { all };
    vec![format!(
        "{old} of {all} pods of {reference} precede its last change and may have other flags"
    )]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_from_before_a_change_are_doubted() {
        let doubted = |generation: i64, status: Value| {
            let workload = json!({"metadata": {"name": "a", "namespace": "n", "generation": generation},
                "status": status});
            doubts(&reference(&AGENTS, &workload), &workload).len()
        };
        let status = |seen: i64, all: i64, new: i64| {
            json!({"observedGeneration": seen, "desiredNumberScheduled": all,
                "updatedNumberScheduled": new})
        };
        assert_eq!(doubted(2, status(2, 3, 3)), 0);
        assert_eq!(doubted(2, status(2, 3, 2)), 1);
        assert_eq!(doubted(2, status(1, 3, 3)), 1);
        assert_eq!(doubted(1, json!({})), 0);
        assert_eq!(doubted(1, json!({"replicas": 2, "updatedReplicas": 1})), 1);
    }
}
