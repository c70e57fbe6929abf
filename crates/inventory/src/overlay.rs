//! Overlays objects of a change on existing ones.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::object::{is_rule, text};

/// The identity of an object, independent of its version.
type Name = (String, String, String, String);

/// Returns the objects of `current`, replaced by those of `change` with the same identity, followed
/// by the others of `change`, each with its attached value. With `replace`, rules of `current` that
/// `change` does not contain are removed: grants, the configuration and ConfigMaps of policies.
/// Namespaces and pods stay.
pub fn overlay<'a, P: Clone + 'a>(
    current: impl Iterator<Item = (&'a Value, &'a P)>,
    change: impl Iterator<Item = (&'a Value, &'a P)> + Clone,
    replace: bool,
) -> (Vec<Value>, Vec<P>) {
    // The last of several objects with the same identity counts, as if they were applied in order.
    let mut changed: HashMap<Name, (&Value, &P)> = HashMap::new();
    for (object, place) in change.clone() {
        changed.insert(name(object), (object, place));
    }
    let mut taken: HashSet<Name> = HashSet::new();
    let mut after = Vec::new();
    for (object, place) in current {
        let name = name(object);
        match changed.get(&name) {
            Some(new) => after.push(*new),
            None if replace && is_rule(object) => {}
            None => after.push((object, place)),
        }
        taken.insert(name);
    }
    for (object, place) in change {
        let name = name(object);
        if taken.insert(name.clone()) {
            after.push(changed.get(&name).copied().unwrap_or((object, place)));
        }
    }
    let after = after.into_iter();
    after
        .map(|(object, place)| (object.clone(), place.clone()))
        .unzip()
}

/// Returns the identity of an object.
fn name(object: &Value) -> Name {
    let text = |pointer: &str| text(object, pointer).to_owned();
    let version = text("/apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let mut namespace = text("/metadata/namespace");
    if namespace.is_empty() && group.is_empty() && matches!(kind.as_str(), "ConfigMap" | "Pod") {
        namespace = "default".into();
    }
    (group.to_owned(), kind, namespace, name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(version: &str, kind: &str, name: &str, says: &str) -> Value {
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "says": says})
    }

    fn shown(objects: &[Value]) -> Vec<String> {
        let shown = objects.iter().map(|object| {
            let text = |pointer: &str| {
                object
                    .pointer(pointer)
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            format!(
                "{} {} {}",
                text("/kind"),
                text("/metadata/name"),
                text("/says")
            )
        });
        shown.collect()
    }

    fn overlaid(current: &[Value], change: &[Value], replace: bool) -> Vec<String> {
        let places = |objects: &'_ [Value]| vec![(); objects.len()];
        let (one, other) = (places(current), places(change));
        let (values, _) = overlay(current.iter().zip(&one), change.iter().zip(&other), replace);
        shown(&values)
    }

    #[test]
    fn objects_of_the_same_name_are_replaced_and_others_added() {
        let current = [
            object("v1", "Namespace", "shop", "old"),
            object("rolegate.dev/v1alpha1", "RoleGrant", "a", "old"),
            object("rolegate.dev/v1alpha1", "RoleGrant", "b", "old"),
            object("v1", "ConfigMap", "rules", "old"),
        ];
        let change = [
            object("rolegate.dev/v1", "RoleGrant", "b", "new"),
            object("v1", "RoleGrant", "a", "another group"),
            object("rolegate.dev/v1alpha1", "RoleGrant", "c", "first"),
            object("rolegate.dev/v1alpha1", "RoleGrant", "c", "last"),
        ];
        assert_eq!(
            overlaid(&current, &change, false),
            [
                "Namespace shop old",
                "RoleGrant a old",
                "RoleGrant b new",
                "ConfigMap rules old",
                "RoleGrant a another group",
                "RoleGrant c last",
            ]
        );
        assert_eq!(
            overlaid(&current, &change, true),
            [
                "Namespace shop old",
                "RoleGrant b new",
                "RoleGrant a another group",
                "RoleGrant c last",
            ]
        );
    }

    #[test]
    fn a_config_map_without_namespace_is_in_the_default_one() {
        let mut there = object("v1", "ConfigMap", "x", "old");
        there["metadata"]["namespace"] = "default".into();
        let new = object("v1", "ConfigMap", "x", "new");
        assert_eq!(overlaid(&[there], &[new], false), ["ConfigMap x new"]);
    }
}
