//! Label selectors (`metav1.LabelSelector`) with bounded sizes.

use std::collections::BTreeMap;

use rolegate_core::annotation::normalized;
use rolegate_core::selector::{Operator, Requirement, Selector};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::validation;

/// A label selector. All requirements must be satisfied.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = validation(
    "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
    "an empty selector would select everything: omit it, or name at least one label")))]
pub struct LabelSelector {
    /// Labels that must be present with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Label requirements in addition to `matchLabels`. All must be satisfied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// A requirement on one label.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = validation(
    "self.operator in ['In', 'NotIn'] ? (has(self.values) && size(self.values) > 0) : (!has(self.values) || size(self.values) == 0)",
    "In and NotIn need values; Exists and DoesNotExist take none")))]
pub struct LabelSelectorRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// The operator of the requirement.
    pub operator: SelectorOperator,
    /// Values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// Relation between a label and the values of a requirement.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectorOperator {
    /// The label is present and has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

impl From<&LabelSelector> for Selector {
    fn from(selector: &LabelSelector) -> Self {
        Self {
            labels: selector
                .match_labels
                .iter()
                .map(|(key, value)| (normalized(key), normalized(value)))
                .collect(),
            expressions: selector.match_expressions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&LabelSelectorRequirement> for Requirement {
    fn from(requirement: &LabelSelectorRequirement) -> Self {
        let values = || {
            requirement
                .values
                .iter()
                .map(|value| normalized(value).into())
        };
        Self {
            key: normalized(&requirement.key).into(),
            operator: match requirement.operator {
                SelectorOperator::In => Operator::In(values().collect()),
                SelectorOperator::NotIn => Operator::NotIn(values().collect()),
                SelectorOperator::Exists => Operator::Exists,
                SelectorOperator::DoesNotExist => Operator::DoesNotExist,
            },
        }
    }
}

impl From<&Selector> for LabelSelector {
    fn from(selector: &Selector) -> Self {
        Self {
            match_labels: selector
                .labels
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            match_expressions: selector.expressions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Requirement> for LabelSelectorRequirement {
    fn from(requirement: &Requirement) -> Self {
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => (SelectorOperator::In, values.as_slice()),
            Operator::NotIn(values) => (SelectorOperator::NotIn, values.as_slice()),
            Operator::Exists => (SelectorOperator::Exists, &[][..]),
            Operator::DoesNotExist => (SelectorOperator::DoesNotExist, &[][..]),
        };
        Self {
            key: requirement.key.to_string(),
            operator,
            values: values.iter().map(ToString::to_string).collect(),
        }
    }
}
