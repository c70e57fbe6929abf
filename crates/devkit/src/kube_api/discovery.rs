//! Lists of the resources that the API server serves.

use serde_json::{Value, json};

use super::store::Store;
use super::target::CORE;

/// Returns the list of resources at `/api/v1` or `/apis/GROUP/VERSION`, if any.
pub(super) fn resources(store: &Store, path: &str) -> Option<Value> {
    let version = match path.trim_matches('/') {
        "api/v1" => CORE,
        other => other.strip_prefix("apis/")?,
    };
    let resources: Vec<_> = store
        .tables()
        .filter(|(_, table)| table.api_version() == version)
        .map(|(name, table)| {
            json!({
                "name": name.rsplit('/').next(),
                "singularName": table.kind().to_lowercase(),
                "namespaced": table.namespaced(),
                "kind": table.kind(),
                "verbs": ["create", "get", "list", "patch", "watch"],
            })
        })
        .collect();
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        })
    })
}
