//! Watches `RoleGrant`s.

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::workload::Change;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::watch::{Source, WatchObserver};
use crate::watch_status::WatchStatus;
use rolegate_api::{LabelSelector, RoleGrant};

/// Watches grants and sends their state: a snapshot first and after each gap, changes in between. A
/// grant that cannot be parsed is sent as [`Grant::unreadable`] and grants nothing. Returns only
/// when `messages` is closed.
pub async fn watch_grants<M: Send + 'static>(
    connection: &Connection,
    observer: WatchObserver,
    wrap: impl Fn(Change<Grant>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let kind = ApiResource::erase::<RoleGrant>(&());
    let api = |client| Api::all_with(client, &kind);
    let source = Source::another("rolegrants", connection, api, grant, wrap);
    let mut health = WatchStatus::new("rolegrants", "RoleGrants", crate::INSTALL_ADVICE, observer);
    source.run(&mut health, &messages).await;
}

/// Parses a grant. An object that cannot be parsed, such as one of a later version, must not be
/// skipped: its previous version would stay in effect.
fn grant(object: DynamicObject) -> Option<Grant> {
    let name = object.metadata.name.clone()?;
    if object.metadata.deletion_timestamp.is_some() {
        // A finalizer may keep the object for as long as its author likes; what it granted is revoked.
        tracing::info!(
            grant = name,
            "a RoleGrant is being deleted and grants nothing"
        );
        return Some(without_roles(&object, name, "it is being deleted".into()));
    }
    match object.clone().try_parse::<RoleGrant>() {
        Ok(object) => Some(Grant::from(&object)),
        Err(error) => {
            let error = crate::chain(&error);
            tracing::warn!(
                grant = name,
                reason = error,
                "cannot parse a RoleGrant, it grants nothing"
            );
            Some(without_roles(&object, name, error))
        }
    }
}

/// Returns a grant that grants nothing, and the reason. The namespaces that it selects stay known.
fn without_roles(object: &DynamicObject, name: String, reason: String) -> Grant {
    Grant {
        name: name.into(),
        generation: object.metadata.generation,
        subjects: selecting(object),
        unreadable: Some(reason),
        ..Grant::default()
    }
}

/// Returns the namespaces that an unreadable grant would select, as far as they can be parsed.
/// Their labels stay protected, because they take effect once the grant is fixed.
fn selecting(object: &DynamicObject) -> Vec<Subject> {
    let subjects = object
        .data
        .pointer("/spec/subjects")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    subjects
        .filter_map(|subject| LabelSelector::deserialize(subject.get("namespaceSelector")?).ok())
        .map(|selector| Subject {
            namespace_selector: Some((&selector).into()),
            ..Subject::default()
        })
        .collect()
}
