//! The kind, group and namespace of a Kubernetes object as JSON.

use rolegate_api::GROUP;
use serde_json::Value;

/// Returns a text field, such as `/metadata/name`; empty if it is absent.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default()
}

/// Returns the API group of an object; empty for the core group.
pub fn group(object: &Value) -> &str {
    let version = text(object, "/apiVersion").split_once('/');
    version.map_or("", |(group, _)| group)
}

/// Returns whether an object is of a kind of the core group.
pub fn is_core(object: &Value, kind: &str) -> bool {
    group(object).is_empty() && text(object, "/kind") == kind
}

/// Returns whether an object is of a kind of rolegate's API group.
pub fn is_ours(object: &Value, kind: &str) -> bool {
    let version = text(object, "/apiVersion").split('/').next();
    text(object, "/kind") == kind && version == Some(GROUP)
}

/// Returns whether an object is a `RolegateConfig`.
pub fn is_config(object: &Value) -> bool {
    is_ours(object, "RolegateConfig")
}

/// Returns whether an object defines rules, except namespaces.
pub fn is_rule(object: &Value) -> bool {
    group(object) == GROUP || is_core(object, "ConfigMap")
}

/// Returns the namespace of an object, or `default` if it is absent or empty.
pub(crate) fn namespace_of<'a>(object: &'a Value, default: &'a str) -> &'a str {
    match text(object, "/metadata/namespace") {
        "" => default,
        name => name,
    }
}
