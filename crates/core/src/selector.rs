//! Kubernetes label selectors (`metav1.LabelSelector`).

use std::sync::Arc;

use crate::labels::Labels;

/// A label selector. All requirements must hold. As in Kubernetes, an empty selector matches
/// everything; grants reject it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector {
    /// Labels that must be present with these values.
    pub labels: Labels,
    /// Further requirements.
    pub expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// The operator of the requirement.
    pub operator: Operator,
}

/// The operator of a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is present and has one of these values.
    In(Vec<Arc<str>>),
    /// The label is absent or has none of these values.
    NotIn(Vec<Arc<str>>),
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Selector {
    /// Returns true if `labels` meet all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .expressions
                .iter()
                .all(|requirement| requirement.is_met(labels))
    }

    /// Returns true if there are no requirements.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Returns the keys of the labels that the selector reads.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let expressions = self.expressions.iter().map(|requirement| &*requirement.key);
        self.labels.iter().map(|(key, _)| key).chain(expressions)
    }
}

impl Requirement {
    fn is_met(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = |values: &[Arc<str>]| {
            value.is_some_and(|value| values.iter().any(|known| **known == *value))
        };
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_match_as_in_kubernetes() {
        let labels: Labels = [("team", "payments"), ("tier", "")].into_iter().collect();
        let requirement = |key: &str, operator| Selector {
            expressions: vec![Requirement {
                key: key.into(),
                operator,
            }],
            ..Selector::default()
        };
        let values = |all: &[&str]| all.iter().map(|value| (*value).into()).collect();
        for (selector, expected) in [
            (Selector::default(), true),
            (
                requirement("team", Operator::In(values(&["payments"]))),
                true,
            ),
            (requirement("team", Operator::In(values(&["shop"]))), false),
            (requirement("none", Operator::In(values(&[""]))), false),
            (
                requirement("team", Operator::NotIn(values(&["payments"]))),
                false,
            ),
            (requirement("none", Operator::NotIn(values(&["x"]))), true),
            (requirement("tier", Operator::Exists), true),
            (requirement("none", Operator::Exists), false),
            (requirement("none", Operator::DoesNotExist), true),
            (requirement("tier", Operator::DoesNotExist), false),
        ] {
            assert_eq!(selector.matches(&labels), expected, "{selector:?}");
        }
        let both = Selector {
            labels: [("team", "payments"), ("tier", "front")]
                .into_iter()
                .collect(),
            expressions: Vec::new(),
        };
        assert!(!both.matches(&labels));
        assert_eq!(both.keys().collect::<Vec<_>>(), ["team", "tier"]);
    }
}
