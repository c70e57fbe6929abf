//! How a ConfigMap of policies or data fares, written where kube-mgmt writes it: into an annotation
//! of the ConfigMap.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap as Object;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::config_maps::ConfigMap;
use crate::status::{StatusError, Written, bounded};

/// kube-mgmt's annotation.
pub const STATUS: &str = "openpolicyagent.org/kube-mgmt-status";
/// How long the API server may take for one.
const WRITE: Duration = Duration::from_secs(10);

/// Writes how `map` fares, as JSON such as `{"status":"ok"}`, unless it says so already.
///
/// # Errors
/// [`StatusError`]: the API server refuses it or is away.
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
        // Only the metadata comes back: the rest may be large.
        api.patch_metadata(&map.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(Written::Changed)
    };
    bounded(WRITE, call).await.map_err(|failure| StatusError {
        what: format!("ConfigMap {}/{}", map.namespace, map.name),
        reason: failure.sentence("annotations of ConfigMaps"),
    })
}
