//! Watches the ConfigMaps of one namespace, which hold policies and their data.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Api;
use kube::runtime::watcher;
use rolegate_core::labels::Labels;
use rolegate_core::workload::Change;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::objects;
use crate::watch::{Source, WatchObserver};
use crate::watch_status::WatchStatus;

/// The annotation of a ConfigMap's status, which rolegate writes.
pub const STATUS: &str = "openpolicyagent.org/kube-mgmt-status";

/// A ConfigMap. The API server limits its size to 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigMap {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The annotations of rolegate and OPA among `metadata.annotations`.
    pub annotations: Labels,
    /// `data`. Binary data is left out.
    pub data: BTreeMap<String, String>,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

impl ConfigMap {
    /// Returns `true` if `other`, which has the same name, has the same content. Its status may
    /// differ.
    pub fn has_same_content(&self, other: &Self) -> bool {
        let annotations = |map: &'_ Self| -> Vec<(String, String)> {
            let all = map.annotations.iter().filter(|(key, _)| *key != STATUS);
            all.map(|(key, value)| (key.into(), value.into())).collect()
        };
        self.labels == other.labels
            && self.data == other.data
            && annotations(self) == annotations(other)
    }
}

/// Watches the ConfigMaps of `namespace` and sends their state: a snapshot first and after each
/// gap, changes in between. Returns only when `messages` is closed.
pub async fn watch_config_maps<M: Send + 'static>(
    connection: &Connection,
    namespace: &str,
    observer: WatchObserver,
    wrap: impl Fn(Change<ConfigMap>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let api = |client| Api::<objects::ConfigMap>::namespaced(client, namespace);
    let mut source = Source::another("configmaps", connection, api, config_map, wrap);
    // Objects may be large.
    source.config = watcher::Config {
        page_size: Some(50),
        ..source.config
    };
    let what = format!("ConfigMaps of namespace {namespace}");
    let mut health = WatchStatus::new("configmaps", what, "", observer);
    source.run(&mut health, &messages).await;
}

/// Watches one ConfigMap as [`watch_config_maps`] does. Needs the rights of a list, because a watch
/// by name is one.
pub async fn watch_config_map<M: Send + 'static>(
    connection: &Connection,
    (namespace, name): (&str, &str),
    observer: WatchObserver,
    wrap: impl Fn(Change<ConfigMap>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let api = |client| Api::<objects::ConfigMap>::namespaced(client, namespace);
    let mut source = Source::another("configmaps", connection, api, config_map, wrap);
    source.config = source.config.fields(&format!("metadata.name={name}"));
    let what = format!("ConfigMap {namespace}/{name}");
    let mut health = WatchStatus::new("configmaps", what, "", observer);
    source.run(&mut health, &messages).await;
}

/// Parses a ConfigMap.
///
/// # Errors
/// Returns a message if the document is malformed.
pub fn read(document: &Value) -> Result<ConfigMap, String> {
    let object = objects::ConfigMap::deserialize(document).map_err(|error| error.to_string())?;
    config_map(object).ok_or_else(|| "it has no metadata.name or metadata.namespace".into())
}

fn config_map(object: objects::ConfigMap) -> Option<ConfigMap> {
    let metadata = object.metadata;
    let kept = |key: &str| {
        let prefixes = ["rolegate.dev/", "openpolicyagent.org/"];
        prefixes.iter().any(|prefix| key.starts_with(prefix))
    };
    let annotations = metadata.annotations.iter().flatten();
    Some(ConfigMap {
        annotations: annotations.filter(|(key, _)| kept(key)).collect(),
        labels: metadata.labels.iter().flatten().collect(),
        namespace: metadata.namespace?.into(),
        name: metadata.name?.into(),
        uid: metadata.uid.unwrap_or_default().into(),
        resource_version: metadata.resource_version.unwrap_or_default(),
        data: object.data.unwrap_or_default(),
    })
}
