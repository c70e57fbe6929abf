//! How a grant or the configuration fares, written into its status, where `kubectl get` shows it.
//! Written only when it changed; one writer at a time is enough, which whoever calls this sees to.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use rolegate_api::{
    CONFIG_NAME, RoleGrant, RoleGrantStatus, RolegateConfig, RolegateConfigStatus, Status,
};

/// How long the API server may take for all of one status.
const WRITE: Duration = Duration::from_secs(20);

/// What became of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is there now.
    Changed,
    /// It was there already.
    Unchanged,
    /// The object is gone.
    Gone,
}

/// What became of the status of an object of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusWrite {
    /// What became of it.
    pub written: Written,
    /// The object's UID; `None` where it is gone.
    pub uid: Option<Arc<str>>,
}

/// Why a status wasn't written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of {what}: {reason}")]
pub struct StatusError {
    /// Of what.
    pub what: String,
    /// What the API server said, in a sentence.
    pub reason: String,
}

/// Writes how the grant `name` fares, and how many live workloads it covers.
///
/// # Errors
/// [`StatusError`]: the API server refuses it or is away.
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

/// Writes how the cluster's configuration fares.
///
/// # Errors
/// [`StatusError`]: the API server refuses it or is away.
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

/// Objects are taken as they come, so that one that can't be read is told so.
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
    let written = bounded(WRITE, call).await.map_err(|failure| StatusError {
        what: format!("{kind} {name}"),
        reason: failure.sentence(&format!("the status of {kind}s")),
    })?;
    Ok(StatusWrite { written, uid })
}

/// The outcome of a call that changes an object, which may be gone by then.
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
