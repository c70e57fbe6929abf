//! What `/debug/*` shows, where it is enabled. No secrets.

use serde_json::{Map, Value, json};

use rolegate_standing::resident::Standing;

use crate::judge::Judge;
use crate::picture::{Owner, Picture};

/// kube2iam's `/debug/store`, with what was decided beside it.
pub(crate) fn store(picture: &Picture, judge: &Judge) -> Value {
    let mut namespaces = Map::new();
    let mut roles = Map::new();
    let mut by_namespace = Map::new();
    let mut decisions = Map::new();
    for (address, owner) in picture.residents() {
        let address = address.to_string();
        let Owner::Pod(resident) = owner else {
            decisions.insert(address, "disputed".into());
            continue;
        };
        let pod = &resident.workload;
        namespaces.insert(address.clone(), (*pod.namespace).into());
        let decided = judge.standing(&resident, judge.now());
        let decision = match &decided.standing {
            Standing::Allowed(allowed) => {
                roles.insert(address.clone(), allowed.role.as_str().into());
                if let Value::Array(list) = by_namespace
                    .entry(pod.namespace.to_string())
                    .or_insert_with(|| json!([]))
                {
                    list.push(allowed.role.as_str().into());
                }
                json!({ "allowed": allowed.role.as_str(), "rules": allowed.rules })
            }
            Standing::NoRole => "no role".into(),
            Standing::Denied { denial, .. } => denial.to_string().into(),
            Standing::Undecided => "undecided".into(),
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
