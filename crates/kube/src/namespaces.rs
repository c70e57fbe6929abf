//! Watches namespaces.

use std::collections::HashSet;
use std::sync::Arc;

use kube::Api;
use rolegate_core::annotation::{AnnotationKeys, DEFAULT_ROLE, PERMITTED, given};
use rolegate_core::namespace::{Namespace, rule_text};
use rolegate_core::needs::Needs;
use rolegate_core::workload::{Change, Update};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::client::Connection;
use crate::objects::{self, labels};
use crate::watch::{Kept, Relist, Source, WatchObserver, never, usual};
use crate::watch_status::WatchStatus;

/// A message about namespaces, as its receiver takes it.
pub trait NamespaceMessage: Send + 'static {
    /// Creates the message of a change.
    fn change(change: Change<Namespace>) -> Self;

    /// Creates the message with the names of all existing namespaces. All others were deleted.
    fn retain(names: HashSet<Arc<str>>) -> Self;
}

impl NamespaceMessage for Update {
    fn change(change: Change<Namespace>) -> Self {
        Self::Namespaces(change)
    }

    fn retain(names: HashSet<Arc<str>>) -> Self {
        Self::RetainNamespaces(names)
    }
}

/// Watches namespaces and sends them: first a snapshot, then changes, and the current state after
/// each gap. Only the parts that rules read (`needs`) are kept; when rules read more, all are
/// listed again. Returns only when `messages` is closed.
pub async fn watch_namespaces<M: NamespaceMessage>(
    connection: &Connection,
    keys: AnnotationKeys,
    needs: watch::Receiver<Option<Needs>>,
    observer: WatchObserver,
    messages: mpsc::Sender<M>,
) {
    let kept = Kept::new(needs);
    let now = kept.clone();
    let freshness = connection.freshness().namespaces.clone();
    let source = Source {
        api: Api::<objects::Namespace>::all(connection.watching(&freshness)),
        config: usual(),
        parse: move |object| namespace(object, &keys, &now.now()),
        wrap: M::change,
        freshness,
        ends_on: never,
        relist: Some(Relist {
            identity: |namespace: &Namespace| &namespace.name,
            is_reported: |_| true,
            retain: M::retain,
        }),
        size_limit: None,
        kept: Some(kept),
    };
    let mut health = WatchStatus::new("namespaces", "namespaces", "", observer);
    source.run(&mut health, &messages).await;
}

/// Parses a namespace.
///
/// # Errors
/// Returns a message if the document is malformed.
pub fn read(document: &Value, keys: &AnnotationKeys) -> Result<Namespace, String> {
    let object = objects::Namespace::deserialize(document).map_err(|error| error.to_string())?;
    namespace(object, keys, &Needs::everything()).ok_or_else(|| "it has no metadata.name".into())
}

/// Trims a namespace. An empty annotation is kept, since it may mean "nothing".
fn namespace(
    object: objects::Namespace,
    keys: &AnnotationKeys,
    needs: &Needs,
) -> Option<Namespace> {
    let metadata = object.metadata;
    let raw = |key: &str| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let rules = |key: &str| raw(key).filter(|_| needs.namespace_roles).map(rule_text);
    Some(Namespace {
        allowed_roles: rules(&keys.allowed_roles),
        permitted: rules(PERMITTED),
        default_role: raw(DEFAULT_ROLE).and_then(given).map(Into::into),
        labels: labels(&metadata, &needs.namespace_labels),
        without_roles: !needs.namespace_roles,
        name: metadata.name?.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_are_normalized_and_labels_taken_as_they_are() {
        let object = serde_json::from_value(
            json!({"metadata": {"name": "shop", "labels": {"team": "shop"}, "annotations": {
                "iam.amazonaws.com/allowed-roles": " [\"shop-*\"]\n",
                "iam.amazonaws.com/permitted": "\n",
                "iam.amazonaws.com/default-role": "\u{a0}shop-default\n",
                "unrelated": "x",
            }}}),
        );
        let keys = AnnotationKeys::default();
        let all = Needs::everything();
        let shop = namespace(object.unwrap(), &keys, &all).unwrap();
        let expected = Namespace {
            name: "shop".into(),
            allowed_roles: Some("[\"shop-*\"]".into()),
            permitted: Some("".into()),
            default_role: Some("shop-default".into()),
            labels: [("team", "shop")].into_iter().collect(),
            without_roles: false,
        };
        assert_eq!(shop, expected);
        let bare = serde_json::from_value(json!({"metadata": {"name": "bare"}})).unwrap();
        let expected = Namespace {
            name: "bare".into(),
            ..Namespace::default()
        };
        assert_eq!(namespace(bare, &keys, &all), Some(expected));
    }

    /// The API server stores null as an empty string, so manifests with null are read alike.
    #[test]
    fn nulls_are_empty_texts() {
        let object = json!({"metadata": {"name": "n", "labels": {"team": null}, "annotations": {
            "iam.amazonaws.com/permitted": null, "iam.amazonaws.com/default-role": null}}});
        let read = read(&object, &AnnotationKeys::default()).unwrap();
        assert_eq!(read.permitted.as_deref(), Some(""));
        assert_eq!(read.default_role, None);
        assert_eq!(read.labels.get("team"), Some(""));
        let nothing = json!({"metadata": {"name": "n", "labels": null, "annotations": null}});
        assert!(super::read(&nothing, &AnnotationKeys::default()).is_ok());
    }

    #[test]
    fn the_key_of_allowed_roles_can_be_renamed() {
        let keys = AnnotationKeys {
            allowed_roles: "a/b".into(),
            ..AnnotationKeys::default()
        };
        let object = json!({"metadata": {"name": "n", "annotations": {"a/b": "[]"}}});
        let object = serde_json::from_value(object).unwrap();
        let renamed = namespace(object, &keys, &Needs::everything()).unwrap();
        assert_eq!(renamed.allowed_roles.as_deref(), Some("[]"));
    }
}
