//! Workloads: pods, reduced to the fields that decisions need.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::annotation::{AnnotationKeys, SESSION_NAME, given};
use crate::labels::Labels;

/// The phase of a pod, as in `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Accepted; not all containers have started.
    #[default]
    Pending,
    /// Bound and running.
    Running,
    /// All containers succeeded. The address may already belong to another pod.
    Succeeded,
    /// All containers ended and at least one failed. The address may already belong to another pod.
    Failed,
    /// The node does not respond.
    Unknown,
}

/// A role request in a pod's annotations. It confers no right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RoleRequest {
    /// The role as written: a name, a name with a path or an ARN. Empty if the pod declines the
    /// default role.
    pub role: Option<Arc<str>>,
    /// The external ID.
    pub external_id: Option<Arc<str>>,
    /// The session name.
    pub session_name: Option<Arc<str>>,
}

impl RoleRequest {
    /// Creates a request from raw annotation values. An empty role declines the default one; an
    /// empty external ID or session name counts as unset.
    pub fn new(role: Option<&str>, external_id: Option<&str>, session_name: Option<&str>) -> Self {
        Self {
            role: role.map(|role| given(role).unwrap_or_default().into()),
            external_id: external_id.and_then(given).map(Into::into),
            session_name: session_name.and_then(given).map(Into::into),
        }
    }

    /// Parses a pod's annotations; `value` returns the raw value of a key.
    pub fn from_annotations<'a>(
        keys: &AnnotationKeys,
        value: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        Self::new(
            value(&keys.role),
            value(&keys.external_id),
            value(SESSION_NAME),
        )
    }

    /// Creates a request for a role alone.
    pub fn for_role(role: &str) -> Self {
        Self::new(Some(role), None, None)
    }
}

/// A pod, reduced to the fields that decisions need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`, which distinguishes the pod from earlier ones of the same name.
    pub uid: Arc<str>,
    /// `spec.nodeName`, once bound.
    pub node: Option<Arc<str>>,
    /// `spec.serviceAccountName`; `default` if unset.
    pub service_account: Arc<str>,
    /// All of `status.podIPs`, of both families.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Phase,
    /// `spec.hostNetwork`: the pod uses the node's address.
    pub host_network: bool,
    /// True if the pod is the mirror of a static pod, which a kubelet can create at will.
    pub mirror: bool,
    /// The role request in the annotations.
    pub role_request: RoleRequest,
    /// The entries of `metadata.labels` that rules read.
    pub labels: Labels,
    /// The entries of `metadata.annotations` that rules read. Rules can read only those of
    /// [`is_kept`](crate::annotation::is_kept). Values are truncated.
    pub annotations: Labels,
}

impl Workload {
    /// Returns true if all containers have terminated for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Returns true if the pod has a node and is not finished. Other pods cannot request anything,
    /// and their number is unlimited.
    pub fn may_run(&self) -> bool {
        self.node.is_some() && !self.is_finished()
    }

    /// Returns the addresses that identify this pod alone. The list is empty for a finished pod (the
    /// network plugin may have reassigned them), for a pod on the host network (they are the
    /// node's) and for a mirror pod (a kubelet can write any value).
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.may_own_addresses() {
            &self.addresses
        } else {
            &[]
        }
    }

    /// Returns true if addresses can identify this pod: it is neither finished nor on the host
    /// network nor a mirror pod.
    pub fn may_own_addresses(&self) -> bool {
        !(self.is_finished() || self.host_network || self.mirror)
    }
}

/// A change of the objects of one kind.
#[derive(Debug, Clone)]
pub enum Change<T> {
    /// The complete list; all other objects were deleted.
    Snapshot(Vec<T>),
    /// A new or changed object.
    Apply(T),
    /// A deleted object, in its last known state.
    Delete(T),
}

/// An ordered event from a source of workloads (Kubernetes or a file). After a gap, a list is
/// reported object by object and then as the set of existing ones, since two full copies would
/// double the memory.
#[derive(Debug, Clone)]
pub enum Update {
    /// A change of workloads.
    Workloads(Change<Workload>),
    /// The UIDs of all existing pods. All others were deleted.
    RetainWorkloads(HashSet<Arc<str>>),
    /// A change of namespaces.
    Namespaces(Change<crate::namespace::Namespace>),
    /// The names of all existing namespaces. All others were deleted.
    RetainNamespaces(HashSet<Arc<str>>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotation::{EXTERNAL_ID, MAX_ANNOTATION_BYTES, ROLE};
    use crate::test_util::pod;

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
            assert!(!none.may_own_addresses(), "{none:?}");
        }
    }

    #[test]
    fn a_pod_may_run_with_a_node_until_it_is_finished() {
        let running = pod(None);
        assert!(running.may_run());
        let unscheduled = Workload {
            node: None,
            ..running.clone()
        };
        assert!(!unscheduled.may_run());
        for phase in [Phase::Succeeded, Phase::Failed] {
            let finished = Workload {
                phase,
                ..running.clone()
            };
            assert!(finished.is_finished() && !finished.may_run());
        }
    }

    #[test]
    fn a_role_request_is_normalized_and_bounded() {
        let long = format!(" {}", "x".repeat(MAX_ANNOTATION_BYTES + 1));
        let role_request =
            RoleRequest::from_annotations(&AnnotationKeys::default(), |key| match key {
                ROLE => Some("reader\n"),
                EXTERNAL_ID => Some(&long),
                SESSION_NAME => Some(" \n"),
                _ => None,
            });
        assert_eq!(role_request.role.as_deref(), Some("reader"));
        assert_eq!(
            role_request.external_id.map(|id| id.len()),
            Some(MAX_ANNOTATION_BYTES)
        );
        assert_eq!(role_request.session_name, None);
        // An empty role declines the default one, unlike an absent role.
        assert_eq!(
            RoleRequest::new(Some("\n"), None, None).role.as_deref(),
            Some("")
        );
        assert_eq!(RoleRequest::new(None, None, None).role, None);
    }
}
