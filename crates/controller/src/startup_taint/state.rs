//! The nodes that have the startup taint, and the nodes whose agent is ready.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// The watched state.
#[derive(Debug)]
pub(super) struct NodesAndAgents {
    key: String,
    tainted: Listed<()>,
    /// The nodes of ready agents, by the name of the agent's pod.
    agents: Listed<String>,
}

impl NodesAndAgents {
    /// Creates the state for taints with this key.
    pub(super) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            tainted: Listed::default(),
            agents: Listed::default(),
        }
    }

    pub(super) fn update_nodes(&mut self, event: Event<Node>) {
        let key = &self.key;
        self.tainted.update(event, |node| {
            (!taints_with(node, key).is_empty()).then_some(())
        });
    }

    pub(super) fn update_agents(&mut self, event: Event<Pod>) {
        self.agents.update(event, ready_on);
    }

    /// Returns the number of nodes that have the taint.
    pub(super) fn tainted(&self) -> usize {
        self.tainted.current.len()
    }

    /// Returns the nodes that have the taint and a ready agent.
    pub(super) fn ready_nodes(&self) -> BTreeSet<String> {
        let ready = self.agents.current.values();
        let tainted = ready.filter(|node| self.tainted.current.contains_key(*node));
        tainted.cloned().collect()
    }
}

/// A watched set of objects, by name. While a new list arrives, the previous one counts.
#[derive(Debug)]
struct Listed<T> {
    current: BTreeMap<String, T>,
    next: BTreeMap<String, T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }
}

impl<T> Listed<T> {
    /// Applies an event. Objects for which `select` returns `None` are left out.
    fn update<K: ResourceExt>(&mut self, event: Event<K>, select: impl Fn(&K) -> Option<T>) {
        match event {
            Event::Apply(object) => match select(&object) {
                Some(value) => {
                    self.current.insert(object.name_any(), value);
                }
                None => {
                    self.current.remove(&object.name_any());
                }
            },
            Event::Delete(object) => {
                self.current.remove(&object.name_any());
            }
            Event::Init => self.next.clear(),
            Event::InitApply(object) => {
                if let Some(value) = select(&object) {
                    self.next.insert(object.name_any(), value);
                }
            }
            Event::InitDone => self.current = std::mem::take(&mut self.next),
        }
    }
}

/// Returns the indices of a node's taints with this key.
pub(super) fn taints_with(node: &Node, key: &str) -> Vec<usize> {
    let taints = node.spec.iter().flat_map(|spec| &spec.taints).flatten();
    let ours = taints.enumerate().filter(|(_, taint)| taint.key == key);
    ours.map(|(index, _)| index).collect()
}

/// Returns the node of a pod that is ready and not being deleted.
fn ready_on(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if ready {
        pod.spec.as_ref()?.node_name.clone()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "rolegate.dev/agent-not-ready";

    fn node(name: &str, taints: &[&str]) -> Node {
        let taints = taints
            .iter()
            .map(|key| json!({"key": key, "effect": "NoSchedule"}));
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"taints": taints.collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    fn agent(name: &str, node: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [], "nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn ready(known: &NodesAndAgents) -> Vec<String> {
        known.ready_nodes().into_iter().collect()
    }

    #[test]
    fn a_tainted_node_waits_for_its_own_ready_agent() {
        let mut known = NodesAndAgents::new(KEY);
        known.update_nodes(Event::Apply(node("a", &["other", KEY])));
        known.update_nodes(Event::Apply(node("b", &["other"])));
        assert_eq!(known.tainted(), 1);
        known.update_agents(Event::Apply(agent("x", "a", "False")));
        known.update_agents(Event::Apply(agent("y", "b", "True")));
        assert!(ready(&known).is_empty());
        known.update_agents(Event::Apply(agent("x", "a", "True")));
        assert_eq!(ready(&known), ["a"]);
        let mut leaving = agent("x", "a", "True");
        leaving.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        known.update_agents(Event::Apply(leaving));
        assert!(ready(&known).is_empty());
    }

    #[test]
    fn a_taint_that_appears_later_is_found() {
        let mut known = NodesAndAgents::new(KEY);
        known.update_nodes(Event::Apply(node("a", &[])));
        known.update_agents(Event::Apply(agent("x", "a", "True")));
        assert!(ready(&known).is_empty());
        known.update_nodes(Event::Apply(node("a", &[KEY, KEY])));
        assert_eq!(ready(&known), ["a"]);
        known.update_nodes(Event::Delete(node("a", &[KEY])));
        assert!(ready(&known).is_empty());
    }

    #[test]
    fn a_new_list_replaces_the_old_one_at_its_end() {
        let mut known = NodesAndAgents::new(KEY);
        known.update_agents(Event::Apply(agent("x", "a", "True")));
        known.update_nodes(Event::Apply(node("a", &[KEY])));
        known.update_nodes(Event::Init);
        known.update_nodes(Event::InitApply(node("b", &[KEY])));
        assert_eq!(ready(&known), ["a"]);
        known.update_nodes(Event::InitDone);
        assert_eq!((ready(&known).len(), known.tainted()), (0, 1));
    }

    #[test]
    fn all_taints_with_the_key_are_found() {
        assert_eq!(taints_with(&node("a", &[KEY, "other", KEY]), KEY), [0, 2]);
        assert!(taints_with(&Node::default(), KEY).is_empty());
    }
}
