//! Watches complete objects of any kind, as data for policies.

use std::sync::Arc;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use rolegate_core::config::ResourceKind;
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::error::{Failure, Kind};
use crate::watch::{SizeLimit, Source, WatchObserver};
use crate::watch_status::WatchStatus;

/// The annotation in which `kubectl apply` stores a copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Advice for a kind that does not exist.
const ABSENT_ADVICE: &str = "install its custom resource definition, or remove it from spec.rego.replicate of the \
     RolegateConfig";

/// An object that policies can read.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicated {
    /// Its kind.
    pub resource: ResourceKind,
    /// `metadata.namespace`. `None` for cluster-scoped kinds.
    pub namespace: Option<Arc<str>>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The object as JSON, without `managedFields` and the copy of `kubectl apply`. Kept as text,
    /// because thousands of objects may wait to be processed, and parsed trees would need many
    /// times as much memory.
    pub object: Box<str>,
    /// The size of the text in bytes if it was left out because the list was too large. Zero
    /// otherwise.
    pub left_out: usize,
}

/// Maximum size of the objects of a list, in bytes. Policies cannot use more.
const MAX_LIST_BYTES: usize = 64 * 1024 * 1024;

/// Watches all objects of a kind and sends their state: a snapshot first and after each gap,
/// changes in between. Returns only when `messages` is closed.
pub async fn watch_replicated<M: Send + 'static>(
    connection: &Connection,
    kind: &ResourceKind,
    observer: WatchObserver,
    wrap: impl Fn(Change<Replicated>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let mut health = WatchStatus::new("replicated", name(kind), ABSENT_ADVICE, observer);
    let resource = tokio::select! {
        resource = discover(connection.client(), kind, &mut health) => resource,
        () = messages.closed() => return,
    };
    let api = |client| Api::all_with(client, &resource);
    let parse = |object| replicated(object, kind, &resource);
    let mut source = Source::another("replicated", connection, api, parse, wrap);
    source.size_limit = Some(SizeLimit {
        bytes: MAX_LIST_BYTES,
        of: |object: &Replicated| object.object.len(),
        leave_out: |object| object.left_out = std::mem::take(&mut object.object).len(),
    });
    source.run(&mut health, &messages).await;
}

/// Formats the kind as in the configuration.
fn name(kind: &ResourceKind) -> String {
    format!("{}/{}", api_version(kind), kind.resource)
}

fn api_version(kind: &ResourceKind) -> String {
    match &*kind.group {
        "" => kind.version.to_string(),
        group => format!("{group}/{}", kind.version),
    }
}

/// Discovers the `kind` of these objects, which lists leave out. Retries until it is known.
async fn discover(client: Client, kind: &ResourceKind, health: &mut WatchStatus) -> ApiResource {
    let api_version = api_version(kind);
    loop {
        let list = match &*kind.group {
            "" => client.list_core_api_resources(&kind.version).await,
            _ => client.list_api_group_resources(&api_version).await,
        };
        let failure = match list {
            Ok(list) => {
                let mut all = list.resources.into_iter();
                match all.find(|one| one.name == *kind.resource) {
                    Some(found) => {
                        return ApiResource {
                            group: kind.group.to_string(),
                            version: kind.version.to_string(),
                            api_version,
                            kind: found.kind,
                            plural: found.name,
                        };
                    }
                    None => Failure::new(Kind::NotFound, "it is not in the list of resources"),
                }
            }
            Err(error) => Failure::of_call(&error),
        };
        tokio::time::sleep(health.failed(&failure)).await;
    }
}

fn replicated(
    mut object: DynamicObject,
    kind: &ResourceKind,
    resource: &ApiResource,
) -> Option<Replicated> {
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    object.types = Some(kube::core::TypeMeta {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
    });
    Some(Replicated {
        resource: kind.clone(),
        namespace: object.metadata.namespace.as_deref().map(Into::into),
        name: object.metadata.name.as_deref()?.into(),
        object: serde_json::to_string(&object).ok()?.into(),
        left_out: 0,
    })
}
