//! The kinds of objects that rolegate adds to a cluster, as Rust types: the API server's schema is
//! made of them, and what administrators write is read into them.
//!
//! They are strict: a field that they don't know is an error, since a grant whose limits were
//! misspelt would grant more than it says. The API server refuses most mistakes at once, by bounds
//! and by rules in CEL; what it can't see is found when an object is turned into what decides.

mod attribution;
mod condition;
mod role_grant;
mod rolegate_config;
mod rule_config;
mod selector;

pub use attribution::{SessionDefaults, SourceIdentity, WorkloadTags};
pub use condition::{Condition, NOT_READY, READY, Status};
pub use role_grant::{RoleGrant, RoleGrantSpec, RoleGrantStatus, Session, Subject};
pub use rolegate_config::{
    LayerMode, Layers, NameOf, NamespaceDefault, Rego, RestrictionFormat, RolegateConfig,
    RolegateConfigSpec, RolegateConfigStatus, WorkloadKind, Writers,
};
pub use rule_config::ConfigError;
pub use selector::{LabelSelector, LabelSelectorRequirement, SelectorOperator};

use kube::CustomResourceExt;
use rolegate_core::annotation::normalized;
use serde_json::{Value, json};

/// The API group of all of them.
pub const GROUP: &str = "rolegate.dev";
/// The version of the API group.
pub const VERSION: &str = "v1alpha1";
/// The name that the one [`RolegateConfig`] of a cluster has.
pub const CONFIG_NAME: &str = "cluster";
/// What to do where the API server doesn't know them.
pub const INSTALL: &str = "install deploy/crds.yaml";

/// The kind of the table of grants that ValidatingAdmissionPolicies read, and its plural.
const TABLE_KIND: (&str, &str) = ("RoleGrantTable", "rolegranttables");

/// The definition of the table of grants. Its data is no `spec`, since a policy reads it as it is.
fn table_definition() -> Value {
    let data = json!({
        "type": "object",
        "description": "Rows of grants, and lists of the rows that count in a namespace.",
        "additionalProperties": { "type": "string" },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{GROUP}", TABLE_KIND.1) },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": { "kind": TABLE_KIND.0, "plural": TABLE_KIND.1 },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": "All grants, as ValidatingAdmissionPolicies read them; written by `rolegate policy export`.",
                    "required": ["data"],
                    "properties": { "data": data },
                }},
            }],
        },
    })
}

/// All definitions as YAML, as they are in `deploy/crds.yaml`.
///
/// # Errors
/// A text if they can't be written as YAML, which no input leads to.
pub fn crds_yaml() -> Result<String, String> {
    let mut text = String::from(
        "# The kinds that rolegate adds to a cluster: `kubectl apply -f crds.yaml`.\n\
         # Written by `rolegate policy export --format crds`; changes are made in the types, not here.\n",
    );
    let derived = [RoleGrant::crd(), RolegateConfig::crd()];
    let definitions = derived.iter().map(serde_json::to_value);
    let definitions = definitions.chain([Ok(table_definition())]);
    for (place, definition) in definitions.enumerate() {
        if place > 0 {
            text.push_str("---\n");
        }
        let mut value = definition.map_err(|error| error.to_string())?;
        tidy(&mut value);
        text.push_str(&serde_saphyr::to_string(&value).map_err(|error| error.to_string())?);
    }
    Ok(text)
}

/// Makes of a derived schema one that reads well: paragraphs are one line. And no field can be
/// null, which would pass for one that is there; the API server drops those that are.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(entries) => entries.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A rule in CEL that the API server holds a value to, and what it says where it isn't met.
fn demand(rule: &str, message: &str) -> Value {
    json!([{"rule": rule, "message": message}])
}

/// A text of an object, normalized as texts of annotations are.
fn text(text: &str) -> String {
    normalized(text).to_owned()
}

fn texts(all: &[String]) -> Vec<String> {
    all.iter().map(|one| text(one)).collect()
}

#[cfg(test)]
mod tests;
