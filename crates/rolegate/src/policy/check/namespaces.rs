//! The namespaces of manifests.

use std::collections::BTreeSet;

use rolegate_inventory::files::Manifests;
use rolegate_inventory::object::is_core;
use rolegate_policy::check::namespace_of;
use serde_json::{Value, json};

/// Returns the namespaces of the manifests, and those that objects are in but nothing describes.
/// The latter have no annotations, as with `helm install --create-namespace`.
pub(super) fn namespaces(
    rules: &[Value],
    manifests: &[Manifests],
    default: &str,
) -> (Vec<Value>, Vec<String>) {
    let documents = || manifests.iter().flat_map(|one| &one.documents);
    let described: Vec<Value> = documents()
        .map(|document| &document.value)
        .filter(|value| is_core(value, "Namespace"))
        .cloned()
        .collect();
    let named = |value: &Value| {
        let name = value.pointer("/metadata/name").and_then(Value::as_str);
        name.map(str::to_owned)
    };
    let known: BTreeSet<String> = rules
        .iter()
        .filter(|value| is_core(value, "Namespace"))
        .chain(&described)
        .filter_map(named)
        .collect();
    let mentioned: BTreeSet<String> = documents()
        .map(|document| &document.value)
        .filter(|value| !is_core(value, "Namespace"))
        .map(|value| namespace_of(value, default))
        .filter(|name| !known.contains(*name))
        .map(str::to_owned)
        .collect();
    let assumed = mentioned
        .iter()
        .map(|name| {
            format!(
                "the rules do not contain namespace {name}: assuming that it has no annotations"
            )
        })
        .collect();
    let made = mentioned.iter().map(|name| {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        })
    });
    let all = described.into_iter().chain(made).collect();
    (all, assumed)
}
