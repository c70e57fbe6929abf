//! Workloads: pods as rolegate knows them, trimmed to what a decision needs.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::annotation::given;
use crate::key_values::KeyValues;

/// A pod's phase, as in `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Accepted, containers not all started.
    #[default]
    Pending,
    /// Bound and running.
    Running,
    /// All containers ended well; the address may already be another pod's.
    Succeeded,
    /// All containers ended, at least one badly; the address may already be another pod's.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// What the pod's annotations ask for: a wish, never a right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Wish {
    /// The role: name, name with path or whole ARN, as written. Empty where the pod declines the
    /// default role.
    pub role: Option<Arc<str>>,
    /// The external ID.
    pub external_id: Option<Arc<str>>,
    /// The session name.
    pub session_name: Option<Arc<str>>,
}

impl Wish {
    /// The wish of a pod whose annotations have these raw texts. An empty role declines the default
    /// one; an empty external ID or session name counts as unset.
    pub fn new(role: Option<&str>, external_id: Option<&str>, session_name: Option<&str>) -> Self {
        Self {
            role: role.map(|role| given(role).unwrap_or_default().into()),
            external_id: external_id.and_then(given).map(Into::into),
            session_name: session_name.and_then(given).map(Into::into),
        }
    }

    /// A wish that only names a role.
    pub fn for_role(role: &str) -> Self {
        Self::new(Some(role), None, None)
    }
}

/// A pod, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`: what tells this pod from one of the same name before it.
    pub uid: Arc<str>,
    /// `spec.nodeName`, once bound.
    pub node: Option<Arc<str>>,
    /// `spec.serviceAccountName`; `default` where the pod names none.
    pub service_account: Arc<str>,
    /// All of `status.podIPs`, both families.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Phase,
    /// `spec.hostNetwork`: the pod's address is the node's.
    pub host_network: bool,
    /// Whether this is the mirror of a static pod, which a kubelet may create as it likes.
    pub mirror: bool,
    /// What the annotations ask for.
    pub wish: Wish,
    /// Those of `metadata.labels` that rules read.
    pub labels: KeyValues,
    /// Those of `metadata.annotations` that rules read, of those that they may read, see
    /// [`crate::annotation::is_kept`]; values are bounded.
    pub annotations: KeyValues,
}

impl Workload {
    /// Returns whether all of its containers ended, for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Returns whether it may run: it has a node, and is not finished. Others can ask for nothing, and
    /// there may be any number of them.
    pub fn may_run(&self) -> bool {
        self.node.is_some() && !self.is_finished()
    }

    /// The addresses that identify this pod and nothing else: none for a finished pod (the
    /// network plugin may have handed them on), for a pod of the host's network (they are the
    /// node's) and for a mirror pod (a kubelet writes what it likes there).
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.is_finished() || self.host_network || self.mirror {
            &[]
        } else {
            &self.addresses
        }
    }
}

/// A change of what a source knows about objects of one kind.
#[derive(Debug, Clone)]
pub enum Change<T> {
    /// All there is; everything else is gone.
    Snapshot(Vec<T>),
    /// New or changed.
    Apply(T),
    /// Gone. The object as last seen.
    Delete(T),
}

/// A report from a source of workloads (Kubernetes or a file), in order. After a gap, a list is
/// reported object by object and then as the set of existing ones: two full copies would take twice
/// the memory.
#[derive(Debug, Clone)]
pub enum Update {
    /// About pods.
    Workloads(Change<Workload>),
    /// These are the UIDs of all pods there are: every other pod is gone.
    RetainWorkloads(HashSet<Arc<str>>),
    /// About namespaces.
    Namespaces(Change<crate::namespace::Namespace>),
    /// These are the names of all namespaces there are: every other one is gone.
    RetainNamespaces(HashSet<Arc<str>>),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A running pod `default/app` of service account `default` at 10.0.0.1.
    pub(crate) fn pod(role: Option<&str>) -> Workload {
        Workload {
            namespace: "default".into(),
            name: "app".into(),
            uid: "uid-1".into(),
            node: Some("node".into()),
            service_account: "default".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            phase: Phase::Running,
            host_network: false,
            mirror: false,
            wish: Wish {
                role: role.map(Into::into),
                ..Wish::default()
            },
            labels: KeyValues::default(),
            annotations: KeyValues::default(),
        }
    }

    #[test]
    fn who_owns_an_address() {
        let running = pod(None);
        assert_eq!(running.own_addresses().len(), 1);
        for phase in [Phase::Pending, Phase::Unknown] {
            assert_eq!(
                Workload {
                    phase,
                    ..running.clone()
                }
                .own_addresses()
                .len(),
                1
            );
        }
        for none in [
            Workload {
                phase: Phase::Succeeded,
                ..running.clone()
            },
            Workload {
                phase: Phase::Failed,
                ..running.clone()
            },
            Workload {
                host_network: true,
                ..running.clone()
            },
            Workload {
                mirror: true,
                ..running
            },
        ] {
            assert!(none.own_addresses().is_empty(), "{none:?}");
        }
    }
}
