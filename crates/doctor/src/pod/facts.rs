//! The facts about a pod.

use rolegate_policy::explain::Explained;

use crate::objects::{Event, Namespace, Pod};
use crate::reading::{Reading, Unread};

/// Everything that the checks read.
#[derive(Debug, Clone)]
pub(crate) struct PodFacts {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) name: String,
    /// The namespace of the agents.
    pub(crate) agent_namespace: String,
    /// The pod.
    pub(crate) pod: Reading<Option<Pod>>,
    /// The object of the pod's namespace.
    pub(crate) namespace_object: Reading<Option<Namespace>>,
    /// The Events of the pod.
    pub(crate) events: Reading<Vec<Event>>,
    /// The Events of the namespace about pods that could not be created.
    pub(crate) refusals: Reading<Vec<Event>>,
    /// The agents on the pod's node.
    pub(crate) agents: Reading<Vec<Pod>>,
    /// The decision.
    pub(crate) explained: Reading<Explained>,
}

impl PodFacts {
    /// Sets the decision.
    pub(crate) fn decide(&mut self, explained: Result<Explained, String>) {
        self.explained = explained.map_err(|why| Unread::Failed {
            what: "the rules of the cluster".into(),
            why,
        });
    }

    /// Returns the pod, which exists.
    pub(crate) fn existing(&self) -> Reading<&Pod> {
        let pod = self.pod.as_ref()?;
        pod.as_ref()
            .ok_or_else(|| Unread::Depends("the pod does not exist".into()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rolegate_policy::explain::{Outcome, Requester};
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::object;

    pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

    /// Returns facts of a pod that may have its role.
    pub(crate) fn healthy() -> PodFacts {
        PodFacts {
            namespace: "shop".into(),
            name: "api-0".into(),
            agent_namespace: "rolegate-system".into(),
            pod: Ok(Some(pod(
                json!({"containers": [{"name": "app"}], "nodeName": "a"}),
            ))),
            namespace_object: Ok(Some(object(json!({"metadata": {"name": "shop"}})))),
            events: Ok(Vec::new()),
            refusals: Ok(Vec::new()),
            agents: Ok(vec![object(json!({"metadata": {"name": "agent-a"},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))]),
            explained: Ok(explained(Outcome::Allowed)),
        }
    }

    pub(crate) fn pod(spec: Value) -> Pod {
        object(
            json!({"metadata": {"name": "api-0", "namespace": "shop"}, "spec": spec,
            "status": {"phase": "Running", "podIP": "10.0.0.9"}}),
        )
    }

    pub(crate) fn explained(decision: Outcome) -> Explained {
        let has_role = decision != Outcome::NoRole;
        Explained {
            workload: Requester {
                namespace: "shop".into(),
                name: "api-0".into(),
                service_account: "api".into(),
                requested_role: has_role.then(|| "reader".to_owned()),
            },
            decision,
            role: has_role.then(|| ROLE.to_owned()),
            layers: Vec::new(),
            denial: None,
            audited: Vec::new(),
            admission: None,
            web_identity: Vec::new(),
            session: None,
            policies: Vec::new(),
            grant: None,
            refused_with_grant: None,
            advice: None,
        }
    }
}
