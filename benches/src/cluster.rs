//! A cluster with many teams. Each has a namespace, roles, and a grant of these roles.

use rolegate_core::grant::{Grant, Subject};
use rolegate_core::selector::Selector;
use serde_json::{Value, json};

use crate::stand_ins::Order;

pub(crate) const GRANTS: &str = "rolegate.dev/v1alpha1/rolegrants";
pub(crate) const CONFIGS: &str = "rolegate.dev/v1alpha1/rolegateconfigs";
pub(crate) const CONFIG_MAPS: &str = "v1/configmaps";
pub(crate) const NAMESPACES: &str = "v1/namespaces";

/// The service account of a team's pods.
pub(crate) const SERVICE_ACCOUNT: &str = "app";
/// The label of a namespace with its team.
const TEAM: &str = "team";

/// The form of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Role names for a namespace.
    Names,
    /// Role names for a service account of a namespace.
    Account,
    /// A role pattern for a namespace.
    Pattern,
    /// A role pattern for namespaces with a label.
    Selector,
    /// A role pattern for any namespace.
    Anywhere,
    /// A role pattern that starts with a star, for any namespace: no index helps.
    StarFirst,
}

impl Shape {
    /// Returns a realistic mix of forms by team.
    pub(crate) fn mixed(team: usize) -> Self {
        match team % 4 {
            0 => Self::Names,
            1 => Self::Account,
            2 => Self::Pattern,
            _ => Self::Selector,
        }
    }
}

/// Returns the namespace of a team.
pub(crate) fn namespace(team: usize) -> String {
    format!("team-{team}")
}

/// Returns a role of a team.
pub(crate) fn role(team: usize) -> String {
    format!("team-{team}-writer")
}

/// Returns the label of a team's namespace.
pub(crate) fn label(team: usize) -> (&'static str, String) {
    (TEAM, format!("t{team}"))
}

/// Returns the grant of a team.
pub(crate) fn grant(team: usize, shape: Shape) -> Grant {
    let (namespaces, namespace_selector) = match shape {
        Shape::Names | Shape::Account | Shape::Pattern => (vec![namespace(team)], None),
        Shape::Anywhere | Shape::StarFirst => (vec!["*".to_owned()], None),
        Shape::Selector => {
            let selector = Selector {
                labels: [label(team)].into_iter().collect(),
                expressions: Vec::new(),
            };
            (Vec::new(), Some(selector))
        }
    };
    let account = (shape == Shape::Account).then(|| SERVICE_ACCOUNT.to_owned());
    Grant {
        name: namespace(team).into(),
        roles: match shape {
            Shape::Names | Shape::Account => vec![format!("team-{team}-reader"), role(team)],
            Shape::Pattern | Shape::Selector | Shape::Anywhere => vec![format!("team-{team}-*")],
            Shape::StarFirst => vec![format!("*-{team}-writer")],
        },
        subjects: vec![Subject {
            namespaces,
            namespace_selector,
            service_accounts: account.into_iter().collect(),
            pod_selector: None,
        }],
        ..Grant::default()
    }
}

/// Returns the order to create or replace these grants.
pub(crate) fn put_grants(grants: impl IntoIterator<Item = Grant>) -> Order {
    put(GRANTS, grants.into_iter().map(|grant| grant_object(&grant)))
}

/// Returns the order to create or replace objects of a resource.
pub(crate) fn put(resource: &str, objects: impl IntoIterator<Item = Value>) -> Order {
    Order::Put {
        resource: resource.to_owned(),
        objects: objects.into_iter().collect(),
    }
}

/// Returns a grant as an object of the API server.
fn grant_object(grant: &Grant) -> Value {
    let subjects = grant.subjects.iter().map(|subject| {
        let mut object = json!({});
        if let Some(fields) = object.as_object_mut() {
            if let Some(selector) = &subject.namespace_selector {
                let labels: serde_json::Map<_, _> = selector
                    .labels
                    .iter()
                    .map(|(key, value)| (key.to_owned(), value.into()))
                    .collect();
                fields.insert("namespaceSelector".into(), json!({"matchLabels": labels}));
            }
            for (name, list) in [
                ("namespaces", &subject.namespaces),
                ("serviceAccounts", &subject.service_accounts),
            ] {
                if !list.is_empty() {
                    fields.insert(name.into(), json!(list));
                }
            }
        }
        object
    });
    json!({
        "apiVersion": "rolegate.dev/v1alpha1",
        "kind": "RoleGrant",
        "metadata": {"name": &*grant.name, "generation": 1},
        "spec": {"roles": grant.roles, "subjects": subjects.collect::<Vec<_>>()},
    })
}

/// Returns a team's namespace as an object of the API server.
pub(crate) fn namespace_object(team: usize) -> Value {
    let (key, value) = label(team);
    named_namespace(&namespace(team), json!({key: value}))
}

/// Returns a namespace with these labels and those that every namespace has.
pub(crate) fn named_namespace(name: &str, mut labels: Value) -> Value {
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        labels.insert(
            "pod-security.kubernetes.io/enforce".into(),
            "baseline".into(),
        );
    }
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"example.com/owner": format!("{name}@example.com")},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_written_as_they_are_decided() {
        let written = |shape| grant_object(&grant(7, shape))["spec"].clone();
        assert_eq!(
            written(Shape::Account),
            json!({
                "roles": ["team-7-reader", "team-7-writer"],
                "subjects": [{"namespaces": ["team-7"], "serviceAccounts": ["app"]}],
            })
        );
        assert_eq!(
            written(Shape::Selector),
            json!({
                "roles": ["team-7-*"],
                "subjects": [{"namespaceSelector": {"matchLabels": {"team": "t7"}}}],
            })
        );
    }
}
