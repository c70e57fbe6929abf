//! Pods that start where, or before, the agent can't cover them: on a node that was chosen by
//! hand, or past every taint, on nodes that are not ready.

use super::{Change, Judge};
use crate::place::{Malformed, Place};
use crate::shape::PodShape;

/// Taints that keep pods from a node until it is ready, by their keys. Kubernetes itself lets each pod
/// tolerate the first two for a while, with effect `NoExecute`, which lets none onto a node.
pub const STARTUP_TAINTS: [&str; 4] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
];

const RULE: &str = "scheduling";
const ASK: &str = "leave it out, or ask your cluster's administrator";

fn chosen() -> String {
    format!("a pod that chooses its node may start there before rolegate covers it; {ASK}")
}

impl Judge<'_> {
    /// Judges where pods want to run, as far as it is not as it was.
    pub(super) fn scheduling(&mut self, new: &PodShape<'_>, old: Option<&PodShape<'_>>) {
        if !self.rules.config.guard_scheduling || self.may_schedule() {
            return;
        }
        // A pod gets its node by its binding, and never by an update.
        let is_bound = old.is_some() && new.path.is_empty();
        if let Some(node) = new.node_name
            && !is_bound
            && old.and_then(|old| old.node_name) != Some(node)
        {
            self.guard(&new.at("spec.nodeName"), RULE, &chosen());
        }
        // A pod that waits for a gate may get it by an update.
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
                    "a pod that tolerates a taint of nodes that are not ready may start before rolegate \
                     covers it; {ASK}"
                ),
            );
        }
        for path in new.tolerates_all.iter().filter(|_| !tolerated) {
            self.guard(
                path,
                RULE,
                &format!(
                    "a pod that tolerates everything may start on a node before rolegate covers \
                     it; name the taints that it tolerates, {ASK}"
                ),
            );
        }
    }

    /// Whoever binds a pod by hand chooses its node.
    pub(super) fn chosen_node(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let target = Place::root(&change.new).at(&["target", "name"])?;
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
                    "only schedulers bind pods to nodes: a pod that chooses its node may start there \
                     before rolegate covers it; {ASK}"
                ),
            );
        }
        Ok(())
    }

    /// The control plane makes pods of templates that were judged before, binds them, and mirrors
    /// static ones, by accounts that are known by name; whoever writes the rules may do as much.
    fn may_schedule(&self) -> bool {
        let user = self.review.user();
        matches!(&*user.name, "system:kube-scheduler" | "system:apiserver")
            || self.is_controller()
            || user.is_in("system:nodes")
            || self.is_rule_writer()
    }
}
