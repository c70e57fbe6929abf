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
/// The most bytes of an error.
const LONGEST: usize = 4096;
/// How long the API server may take for one.
const WRITE: Duration = Duration::from_secs(10);

/// How policies or data fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyStatus {
    /// They count.
    Ok,
    /// They don't, for this reason.
    Error(String),
}

impl PolicyStatus {
    /// The annotation's value: `{"status":"ok"}`, or `{"status":"error","error":…}` with OPA's
    /// shape of an error.
    pub fn to_text(&self) -> String {
        let status: Value = match self {
            Self::Ok => json!({"status": "ok"}),
            Self::Error(reason) => {
                let end = reason.floor_char_boundary(LONGEST);
                let message = reason.get(..end).unwrap_or(reason);
                json!({
                    "status": "error",
                    "error": {"code": "invalid_parameter", "message": message},
                })
            }
        };
        status.to_string()
    }
}

/// Writes how `map` fares, unless it says so already.
///
/// # Errors
/// [`StatusError`]: the API server refuses it or is away.
pub async fn write_policy_status(
    client: &Client,
    map: &ConfigMap,
    status: &PolicyStatus,
) -> Result<Written, StatusError> {
    let text = status.to_text();
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
