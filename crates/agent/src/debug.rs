//! The `/debug/*` pages, if enabled. They contain no secrets.

use serde_json::{Map, Value, json};

use rolegate_authorizer::pod::Authorization;

use crate::decision_source::DecisionSource;
use crate::pod_table::{Owner, PodTable};

/// Renders kube2iam's `/debug/store`, with the decisions added.
pub(crate) fn store(pod_table: &PodTable, source: &DecisionSource) -> Value {
    let mut namespaces = Map::new();
    let mut roles = Map::new();
    let mut by_namespace = Map::new();
    let mut decisions = Map::new();
    for (address, owner) in pod_table.pods() {
        let address = address.to_string();
        let Owner::Pod(entry) = owner else {
            decisions.insert(address, "disputed".into());
            continue;
        };
        let pod = &entry.workload;
        namespaces.insert(address.clone(), (*pod.namespace).into());
        let decided = source.authorization(&entry, source.now());
        let decision = match &decided.authorization {
            Authorization::Allowed(allowed) => {
                roles.insert(address.clone(), allowed.role.as_str().into());
                if let Value::Array(list) = by_namespace
                    .entry(pod.namespace.to_string())
                    .or_insert_with(|| json!([]))
                {
                    list.push(allowed.role.as_str().into());
                }
                json!({ "allowed": allowed.role.as_str(), "rules": allowed.rules })
            }
            Authorization::NoRole => "no role".into(),
            Authorization::Denied { denial, .. } => denial.to_string().into(),
            Authorization::Pending => "undecided".into(),
        };
        decisions.insert(
            address,
            json!({ "pod": format!("{}/{}", pod.namespace, pod.name), "decision": decision }),
        );
    }
    json!({
        "namespaceByIP": namespaces,
        "rolesByIP": roles,
        "rolesByNamespace": by_namespace,
        "decisions": decisions,
    })
}
