//! Writes the status of a policy or data ConfigMap into the annotation that kube-mgmt uses.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap as Object;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::config_maps::ConfigMap;
pub use crate::config_maps::STATUS;
use crate::status::{StatusError, Written, bounded};

/// Timeout for writing a status.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the status of `map`, as JSON such as `{"status":"ok"}`, unless it is unchanged.
///
/// # Errors
/// Returns [`StatusError`] if the API server refuses the request or is unavailable.
pub async fn write_policy_status(
    client: &Client,
    map: &ConfigMap,
    status: &Value,
) -> Result<Written, StatusError> {
    let text = status.to_string();
    if map.annotations.get(STATUS) == Some(&*text) {
        return Ok(Written::Unchanged);
    }
    let api = Api::<Object>::namespaced(client.clone(), &map.namespace);
    let patch = json!({"metadata": {"annotations": {STATUS: text}}});
    let call = async {
        let params = PatchParams::default();
        // Only the metadata is returned: the rest may be large.
        api.patch_metadata(&map.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(Written::Changed)
    };
    bounded(WRITE_TIMEOUT, call)
        .await
        .map_err(|failure| StatusError {
            what: format!("ConfigMap {}/{}", map.namespace, map.name),
            reason: failure.sentence("annotations of ConfigMaps"),
        })
}
