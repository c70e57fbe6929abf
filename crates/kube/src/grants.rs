//! `RoleGrant`s as grants.

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use rolegate_core::grant::Grant;
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::crd::{INSTALL, RoleGrant};
use crate::watch::{Reporting, Source};
use crate::watchdog::Watchdog;

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
    match object.try_parse::<RoleGrant>() {
        Ok(object) => Some(Grant::from(&object)),
        Err(error) => {
            let error = crate::chain(&error);
            tracing::warn!(
                grant = name,
                "a RoleGrant cannot be read and grants nothing: {error}"
            );
            Some(Grant {
                name: name.into(),
                unreadable: Some(error),
                ..Grant::default()
            })
        }
    }
}
