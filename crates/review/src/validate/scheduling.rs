//! Validates scheduling: pods must not start where, or before, the agent covers them, by selecting
//! a node by hand or tolerating every taint or nodes that are not ready.

use super::{Change, Validator};
use crate::field_path::{FieldRef, Malformed};
use crate::pod_template::PodShape;

/// Keys of the taints that keep pods off a node until it is ready. Kubernetes itself adds a
/// toleration of the first two to every pod, with effect `NoExecute`, which does not permit
/// scheduling.
pub const STARTUP_TAINTS: [&str; 4] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
];

const RULE: &str = "scheduling";
const ASK: &str = "leave it out, or ask your cluster's administrator";

fn chosen() -> String {
    format!("a pod that selects its node may start there before the agent runs; {ASK}")
}

impl Validator<'_> {
    /// Validates the scheduling of a pod where it has changed.
    pub(super) fn scheduling(&mut self, new: &PodShape<'_>, old: Option<&PodShape<'_>>) {
        if !self.rules.config.guard_scheduling || self.may_schedule() {
            return;
        }
        // A pod is bound by a binding, never by an update.
        let is_bound = old.is_some() && new.path.is_empty();
        if let Some(node) = new.node_name
            && !is_bound
            && old.and_then(|old| old.node_name) != Some(node)
        {
            self.guard(&new.at("spec.nodeName"), RULE, &chosen());
        }
        // A pod with scheduling gates can change its node selection by an update.
        let picked = |shape: &PodShape<'_>| {
            let picked = shape.picked_nodes.iter().flat_map(|picked| &picked.names);
            picked.map(|name| (*name).to_owned()).collect::<Vec<_>>()
        };
        let is_picked_anew = old.is_none_or(|old| picked(old) != picked(new));
        for nodes in new.picked_nodes.iter().filter(|_| is_picked_anew) {
            self.guard(&nodes.path, RULE, &chosen());
        }
        let tolerated = old.is_some_and(|old| !old.tolerates_all.is_empty());
        let early = old.is_some_and(|old| !old.tolerates_startup.is_empty());
        for path in new.tolerates_startup.iter().filter(|_| !early) {
            self.guard(
                path,
                RULE,
                &format!(
                    "a pod that tolerates a taint of nodes that are not ready may start on a node \
                     before the agent runs; {ASK}"
                ),
            );
        }
        for path in new.tolerates_all.iter().filter(|_| !tolerated) {
            self.guard(
                path,
                RULE,
                &format!(
                    "a pod that tolerates every taint may start on a node before the agent runs; \
                     list the taints that it tolerates, {ASK}"
                ),
            );
        }
    }

    /// Validates a binding, which selects the node of its pod.
    pub(super) fn chosen_node(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let target = FieldRef::root(&change.new).at(&["target", "name"])?;
        let names_node = target.is_some_and(|target| target.value.as_text() != Some(""));
        if self.rules.config.guard_scheduling
            && self.is_creation()
            && names_node
            && !self.may_schedule()
        {
            self.guard(
                "target.name",
                RULE,
                &format!(
                    "only schedulers bind pods to nodes: a pod that selects its node may start \
                     there before the agent runs; {ASK}"
                ),
            );
        }
        Ok(())
    }

    /// Returns `true` for users that may schedule: the control plane, which creates pods from
    /// validated templates, binds them and mirrors static ones with well-known accounts, and rule
    /// writers.
    fn may_schedule(&self) -> bool {
        let user = self.review.user();
        matches!(&*user.name, "system:kube-scheduler" | "system:apiserver")
            || self.is_controller()
            || user.is_in("system:nodes")
            || self.is_rule_writer()
    }
}
