//! Watches service accounts.

use kube::Api;
use rolegate_core::service_account::{ServiceAccount, ServiceAccountAnnotations};
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::objects;
use crate::watch::{Source, WatchObserver};
use crate::watch_status::WatchStatus;

const RESOURCE: &str = "serviceaccounts";

/// Watches the service accounts of all namespaces and sends their state: a snapshot first and after
/// each gap, changes in between. `prefix` is that of the EKS webhook's annotations. Returns only
/// when `messages` is closed.
pub async fn watch_service_accounts<M: Send + 'static>(
    connection: &Connection,
    prefix: String,
    observer: WatchObserver,
    wrap: impl Fn(Change<ServiceAccount>) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    let parse = move |object| service_account(object, &prefix);
    let api = Api::<objects::ServiceAccount>::all;
    let source = Source::another(RESOURCE, connection, api, parse, wrap);
    let mut health = WatchStatus::new(RESOURCE, "service accounts", "", observer);
    source.run(&mut health, &messages).await;
}

/// Reduces a service account to its identity and the annotations that concern AWS.
fn service_account(object: objects::ServiceAccount, prefix: &str) -> Option<ServiceAccount> {
    let metadata = object.metadata;
    let annotations = metadata.annotations.as_ref();
    let value = |key: &str| annotations?.get(key).map(String::as_str);
    Some(ServiceAccount {
        annotations: ServiceAccountAnnotations::parse(prefix, value),
        namespace: metadata.namespace?.into(),
        name: metadata.name?.into(),
        uid: metadata.uid?.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_of_aws_are_kept_and_others_are_not() {
        let read = |annotations: serde_json::Value, prefix| {
            let object = json!({"metadata": {"namespace": "shop", "name": "api", "uid": "u",
                "annotations": annotations}, "secrets": [{"name": "s"}]});
            service_account(serde_json::from_value(object).unwrap(), prefix).unwrap()
        };
        let found = read(
            json!({
                "rolegate.dev/role": " reader\n",
                "eks.amazonaws.com/role-arn": "arn",
                "eks.amazonaws.com/audience": "sts",
                "eks.amazonaws.com/sts-regional-endpoints": "true",
                "eks.amazonaws.com/token-expiration": "600",
                "unrelated": "x",
            }),
            "eks.amazonaws.com",
        );
        assert_eq!(
            (&*found.namespace, &*found.name, &*found.uid),
            ("shop", "api", "u")
        );
        let expected = ServiceAccountAnnotations {
            role: Some("reader".into()),
            web_identity_role: Some("arn".into()),
            audience: Some("sts".into()),
            regional_sts: Some("true".into()),
            token_expiration: Some("600".into()),
        };
        assert_eq!(found.annotations, expected);
        let renamed = read(json!({"eks.amazonaws.com/role-arn": "arn"}), "aws.example");
        assert!(renamed.annotations.is_empty());
        let declined = read(json!({"rolegate.dev/role": null}), "aws.example");
        assert_eq!(declined.annotations.role.as_deref(), Some(""));
        assert!(read(json!(null), "aws.example").annotations.is_empty());
    }
}
