//! Writes the status of grants and of the configuration, which `kubectl get` shows. A status is
//! written only if it changed. The caller ensures that there is one writer.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Failure, Kind};
use rolegate_api::{
    CONFIG_NAME, RoleGrant, RoleGrantStatus, RolegateConfig, RolegateConfigStatus, Status,
};

/// Timeout for all requests of one status.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// The result of writing a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The status was written.
    Changed,
    /// The status was up to date.
    Unchanged,
    /// The object was deleted.
    Gone,
}

/// The result of writing the status of a custom resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusWrite {
    /// The result.
    pub written: Written,
    /// The object's UID. `None` if it was deleted.
    pub uid: Option<Arc<str>>,
}

/// An error that prevented writing a status.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of {what}: {reason}")]
pub struct StatusError {
    /// The object.
    pub what: String,
    /// The API server's error.
    pub reason: String,
}

/// Writes the status of the grant `name` and the number of live workloads it covers.
///
/// # Errors
/// Returns [`StatusError`] if the API server refuses the request or is unavailable.
pub async fn write_grant_status(
    client: &Client,
    name: &str,
    status: &Status,
    workloads: i64,
    now: Timestamp,
) -> Result<StatusWrite, StatusError> {
    let kind = ApiResource::erase::<RoleGrant>(&());
    let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
    write(&api, "RoleGrant", name, |before: RoleGrantStatus| {
        json!(RoleGrantStatus {
            conditions: vec![status.condition(&before.conditions, &now.to_string())],
            workloads: Some(workloads),
            observed_generation: status.generation,
        })
    })
    .await
}

/// Writes the status of the cluster's configuration.
///
/// # Errors
/// Returns [`StatusError`] if the API server refuses the request or is unavailable.
pub async fn write_config_status(
    client: &Client,
    status: &Status,
    now: Timestamp,
) -> Result<StatusWrite, StatusError> {
    let kind = ApiResource::erase::<RolegateConfig>(&());
    let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
    let made = |before: RolegateConfigStatus| {
        json!(RolegateConfigStatus {
            conditions: vec![status.condition(&before.conditions, &now.to_string())],
            observed_generation: status.generation,
        })
    };
    write(&api, "RolegateConfig", CONFIG_NAME, made).await
}

/// Objects are read untyped, so that an invalid one gets its status too.
async fn write<S: DeserializeOwned + Default>(
    api: &Api<DynamicObject>,
    kind: &str,
    name: &str,
    made: impl FnOnce(S) -> Value,
) -> Result<StatusWrite, StatusError> {
    let mut uid = None;
    let call = async {
        let Some(mut object) = api.get_opt(name).await? else {
            return Ok(Written::Gone);
        };
        uid = object.metadata.uid.take().map(Into::into);
        let before = object
            .data
            .get_mut("status")
            .map(Value::take)
            .unwrap_or_default();
        let status = made(serde_json::from_value(before.clone()).unwrap_or_default());
        if status == before {
            return Ok(Written::Unchanged);
        }
        let patch = Patch::Merge(json!({"status": status}));
        let params = PatchParams::default();
        api.patch_status(name, &params, &patch).await?;
        Ok(Written::Changed)
    };
    let written = bounded(WRITE_TIMEOUT, call)
        .await
        .map_err(|failure| StatusError {
            what: format!("{kind} {name}"),
            reason: failure.sentence(&format!("the status of {kind}s")),
        })?;
    Ok(StatusWrite { written, uid })
}

/// Returns the outcome of a request that changes an object, which may have been deleted.
pub(crate) async fn bounded(
    within: Duration,
    call: impl Future<Output = Result<Written, kube::Error>>,
) -> Result<Written, Failure> {
    let failure = match tokio::time::timeout(within, call).await {
        Ok(Ok(written)) => return Ok(written),
        Ok(Err(error)) => Failure::of_call(&error),
        Err(_) => Failure::no_answer(within),
    };
    match failure.kind {
        Kind::NotFound => Ok(Written::Gone),
        _ => Err(failure),
    }
}
