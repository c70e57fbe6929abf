//! Objects of any kind, whole, for policies to look at.

use std::sync::Arc;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};
use rolegate_core::config::ResourceKind;
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::failure::{Failure, Kind};
use crate::watch::{Most, Reporting, Source};
use crate::watchdog::Watchdog;

/// The annotation in which `kubectl apply` keeps the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What to do about a kind that isn't there.
const ABSENT: &str =
    "install the kind, or take it out of spec.rego.replicate of the RolegateConfig";

/// An object of a kind that policies look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicated {
    /// Its kind.
    pub resource: ResourceKind,
    /// `metadata.namespace`, for kinds that have namespaces.
    pub namespace: Option<Arc<str>>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// All of it as JSON, apart from the records of who set which field. Text, because a cluster
    /// has thousands that wait together to be taken in, and trees would take many times as much.
    pub object: Box<str>,
    /// The bytes of that text where it was left out, since a list had too much of it; zero where it
    /// is here.
    pub left_out: usize,
}

/// Most bytes of the objects of a list: policies can't be asked about more.
const MOST: usize = 64 * 1024 * 1024;

/// Watches all objects of a kind and sends what they are: a snapshot first and after each gap,
/// changes between. Returns only when `messages` is closed.
pub async fn watch_replicated<M: Send + 'static>(
    connection: &Connection,
    kind: &ResourceKind,
    reporting: Reporting,
    wrap: impl Fn(Change<Replicated>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let mut health = Watchdog::new("replicated", name(kind), ABSENT, reporting);
    let resource = tokio::select! {
        resource = discover(connection.client(), kind, &mut health) => resource,
        () = messages.closed() => return,
    };
    let api = |client| Api::all_with(client, &resource);
    let parse = |object| replicated(object, kind, &resource);
    let mut source = Source::another("replicated", connection, api, parse, wrap);
    source.most = Some(Most {
        bytes: MOST,
        of: |object: &Replicated| object.object.len(),
        leave_out: |object| object.left_out = std::mem::take(&mut object.object).len(),
    });
    source.run(&mut health, &messages).await;
}

/// As it is written in the configuration.
fn name(kind: &ResourceKind) -> String {
    format!("{}/{}", api_version(kind), kind.resource)
}

fn api_version(kind: &ResourceKind) -> String {
    match &*kind.group {
        "" => kind.version.to_string(),
        group => format!("{group}/{}", kind.version),
    }
}

/// Asks what objects of this kind call themselves, which lists leave out, until it is known.
async fn discover(client: Client, kind: &ResourceKind, health: &mut Watchdog) -> ApiResource {
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
