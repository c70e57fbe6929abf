//! Selection of objects for a list or a watch: the namespace and the field selector.

use serde_json::Value;

use super::target::Target;
use super::{Failure, Query};

/// The conditions for an object.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    /// JSON pointer to the field.
    pointer: String,
    value: String,
    equal: bool,
}

/// Returns the fields that a real server can select by, for each resource.
fn fields(resource: &str) -> &'static [&'static str] {
    match resource {
        "pods" => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
        ],
        "namespaces" => &["metadata.name", "status.phase"],
        _ => &["metadata.name"],
    }
}

impl Selector {
    pub(super) fn parse(target: Target<'_>, query: &Query) -> Result<Self, Failure> {
        if query
            .get("labelSelector")
            .is_some_and(|selector| !selector.is_empty())
        {
            return Err(Failure::new(
                400,
                "the stand-in does not support label selectors",
            ));
        }
        let selector = query
            .get("fieldSelector")
            .map(String::as_str)
            .unwrap_or_default();
        let mut terms = selector
            .split(',')
            .filter(|term| !term.is_empty())
            .map(|term| Term::parse(target.resource, term))
            .collect::<Result<Vec<_>, _>>()?;
        terms.extend(target.namespace.map(|namespace| Term {
            pointer: "/metadata/namespace".into(),
            value: namespace.into(),
            equal: true,
        }));
        Ok(Self { terms })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| term.matches(object))
    }
}

impl Term {
    fn parse(resource: &str, term: &str) -> Result<Self, Failure> {
        let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = term.split_once("==").or(term.split_once('=')) {
            (field, value, true)
        } else {
            let message = format!("invalid selector: '{term}'; can't understand '{term}'");
            return Err(Failure::new(400, message));
        };
        if !fields(resource).contains(&field) {
            return Err(Failure::new(
                400,
                format!("field label not supported: {field}"),
            ));
        }
        Ok(Self {
            pointer: format!("/{}", field.replace('.', "/")),
            value: value.into(),
            equal,
        })
    }

    fn matches(&self, object: &Value) -> bool {
        // An unset field has its type's empty value.
        let same = match object.pointer(&self.pointer) {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(set)) => self.value == set.to_string(),
            _ => self.value.is_empty() || self.value == "false",
        };
        same == self.equal
    }
}
