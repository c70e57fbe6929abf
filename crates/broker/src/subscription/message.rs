//! The messages about a pod and the roles of its service account.

use std::net::IpAddr;
use std::sync::Arc;

use rolegate_authorizer::pod::AssignedRoles;
use rolegate_authorizer::pod::{Allowed, Authorization, PodEntry, RoleOf};
use rolegate_proto::{v1, wire};

use super::Pod;

/// Returns the message of a pod's current state.
pub(super) fn message(pod: &Pod) -> v1::Pod {
    use v1::pod::Authorization as Said;
    let workload = &pod.entry.workload;
    let decided = pod.entry.decided.load();
    let authorization = match &decided.authorization {
        Authorization::Allowed(allowed) => Said::Allowed(allowed_message(allowed, pod.session)),
        Authorization::Denied { denial, .. } => Said::Denied(denial.into()),
        Authorization::NoRole => Said::NoRole(v1::Empty {}),
        Authorization::Pending => Said::Pending(v1::Empty {}),
    };
    let assigned = pod.entry.assigned.load();
    let is_known = |assigned: &Arc<AssignedRoles>| assigned.is_known();
    let address = |address: &IpAddr| wire::address_bytes(*address);
    v1::Pod {
        uid: workload.uid.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        service_account: workload.service_account.to_string(),
        addresses: workload.own_addresses().iter().map(address).collect(),
        authorization: Some(authorization),
        // The first role is the pod's own.
        assigned_roles: pod
            .roles()
            .iter()
            .skip(1)
            .filter_map(assigned_message)
            .collect(),
        unknown_service_account: !assigned.as_ref().is_none_or(is_known),
    }
}

fn allowed_message(allowed: &Allowed, session: Option<u64>) -> v1::Allowed {
    v1::Allowed {
        session: session.unwrap_or_default(),
        role_name: String::from_utf8_lossy(&allowed.role_name).into_owned(),
        rules: allowed.rules.to_vec(),
        audited: allowed.audited.iter().map(Into::into).collect(),
    }
}

/// Returns the message of a role of the pod's service account; `None` if it has none.
fn assigned_message((entry, session): &(Arc<PodEntry>, Option<u64>)) -> Option<v1::AssignedRole> {
    use v1::assigned_role::Authorization as Said;
    let RoleOf::ServiceAccount { audience } = &entry.role_of else {
        return None;
    };
    let authorization = match &entry.decided.load().authorization {
        Authorization::Allowed(allowed) => Said::Allowed(allowed_message(allowed, *session)),
        Authorization::Denied { denial, .. } => Said::Denied(denial.into()),
        Authorization::Pending => Said::Pending(v1::Empty {}),
        Authorization::NoRole => return None,
    };
    Some(v1::AssignedRole {
        audience: audience.as_deref().map(str::to_owned),
        authorization: Some(authorization),
    })
}
