//! `RoleGrant`s as grants.

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::workload::Change;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::watch::{Reporting, Source};
use crate::watchdog::Watchdog;
use rolegate_api::{INSTALL, LabelSelector, RoleGrant};

/// Watches grants and sends what they are: a snapshot first and after each gap, changes between.
/// One that can't be read is sent as such ([`Grant::unreadable`]), and grants nothing. Returns only
/// when `messages` is closed.
pub async fn watch_grants<M: Send + 'static>(
    connection: &Connection,
    reporting: Reporting,
    wrap: impl Fn(Change<Grant>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let kind = ApiResource::erase::<RoleGrant>(&());
    let api = |client| Api::all_with(client, &kind);
    let source = Source::another("rolegrants", connection, api, grant, wrap);
    let mut health = Watchdog::new("rolegrants", "RoleGrants", INSTALL, reporting);
    source.run(&mut health, &messages).await;
}

/// One object that can't be read, as those of a later version may be, must not be skipped: what it
/// said before would go on.
fn grant(object: DynamicObject) -> Option<Grant> {
    let name = object.metadata.name.clone()?;
    match object.clone().try_parse::<RoleGrant>() {
        Ok(object) => Some(Grant::from(&object)),
        Err(error) => {
            let error = crate::chain(&error);
            tracing::warn!(
                grant = name,
                reason = error,
                "a RoleGrant cannot be read and grants nothing"
            );
            Some(Grant {
                name: name.into(),
                generation: object.metadata.generation,
                subjects: selecting(&object),
                unreadable: Some(error),
                ..Grant::default()
            })
        }
    }
}

/// The namespaces that a grant which cannot be read would select, as far as they can be: their labels
/// are guarded meanwhile, or they would count once it is mended.
fn selecting(object: &DynamicObject) -> Vec<Subject> {
    let subjects = object.data.pointer("/spec/subjects");
    let subjects = subjects.and_then(Value::as_array).into_iter().flatten();
    subjects
        .filter_map(|subject| LabelSelector::deserialize(subject.get("namespaceSelector")?).ok())
        .map(|selector| Subject {
            namespace_selector: Some((&selector).into()),
            ..Subject::default()
        })
        .collect()
}
