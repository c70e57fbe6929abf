//! Reads the facts about a pod.

use rolegate_core::names;

use super::facts::PodFacts;
use crate::objects::Pod;
use crate::reader::{Reader, everywhere, within};
use crate::reading::{Reading, Unread};

/// The pod, and the namespace of the agents.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) agent_namespace: &'a str,
}

/// Reads everything but the decision.
pub(super) async fn gather(reader: &Reader, place: Place<'_>) -> PodFacts {
    let Place {
        namespace,
        name,
        agent_namespace,
    } = place;
    let events = within("v1", "events", namespace);
    let of_pod = format!("fieldSelector=involvedObject.kind%3DPod%2CinvolvedObject.name%3D{name}");
    let refused = "fieldSelector=reason%3DFailedCreate";
    let found = async {
        let pod = reader
            .get::<Pod>(within("v1", "pods", namespace), name)
            .await;
        let agents = agents(reader, agent_namespace, &pod).await;
        (pod, agents)
    };
    let ((pod, agents), namespace_object, events, refusals) = tokio::join!(
        found,
        reader.get(everywhere("v1", "namespaces"), namespace),
        reader.list(events, &of_pod),
        reader.list(events, refused),
    );
    PodFacts {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        agent_namespace: agent_namespace.to_owned(),
        pod,
        namespace_object,
        events,
        refusals,
        agents,
        explained: Err(Unread::Depends("the decision is not known".into())),
    }
}

/// Returns the agents on the node of the pod.
async fn agents(reader: &Reader, namespace: &str, pod: &Reading<Option<Pod>>) -> Reading<Vec<Pod>> {
    let node = match pod {
        Ok(Some(pod)) => pod.spec.node_name.as_str(),
        Ok(None) => "",
        Err(unread) => return Err(unread.clone()),
    };
    if node.is_empty() {
        return Err(Unread::Depends("the pod has no node".into()));
    }
    let label = format!("labelSelector=app.kubernetes.io%2Fname%3D{}", names::AGENT);
    let selector = format!("{label}&fieldSelector=spec.nodeName%3D{node}");
    reader
        .list(within("v1", "pods", namespace), &selector)
        .await
}
