//! Fixtures for the tests of this crate and of those that use it (feature `test-util`).

use crate::arn::RoleArn;
use crate::labels::Labels;
use crate::service_account::{ServiceAccount, ServiceAccountAnnotations};
use crate::session::SessionKey;
use crate::workload::{Phase, RoleRequest, Workload};

/// Returns a running pod `default/app` that requests `role`: UID `uid-1`, node `node`, service
/// account `default`, address 10.0.0.1. A test overrides the fields that it is about.
pub fn pod(role: Option<&str>) -> Workload {
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
        role_request: RoleRequest {
            role: role.map(Into::into),
            ..RoleRequest::default()
        },
        labels: Labels::default(),
        annotations: Labels::default(),
    }
}

/// Returns the service account `default/default` of [`pod`], with UID `account-1` and with `role` in
/// its annotation.
pub fn service_account(role: Option<&str>) -> ServiceAccount {
    ServiceAccount {
        namespace: "default".into(),
        name: "default".into(),
        uid: "account-1".into(),
        annotations: ServiceAccountAnnotations {
            role: role.map(Into::into),
            ..ServiceAccountAnnotations::default()
        },
    }
}

/// Returns the parameters of a call for `role`, a name or path below the account 123456789012, with
/// the session name `default.default` and a duration of an hour.
///
/// # Panics
/// Panics if `role` is not valid in an ARN.
#[allow(clippy::unwrap_used, reason = "a test may panic: that is how it fails")]
pub fn session_key(role: &str) -> SessionKey {
    SessionKey {
        role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{role}")).unwrap(),
        name: "default.default".into(),
        external_id: None,
        duration_seconds: 3600,
        limits: None,
        target: None,
    }
}
