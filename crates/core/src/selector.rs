//! Label selectors, as Kubernetes has them (`metav1.LabelSelector`).

use std::sync::Arc;

use crate::key_values::KeyValues;

/// All of these must match. One without any demand matches everything, which is what it means in
/// Kubernetes; whoever takes it for a subject refuses it before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector {
    /// Labels that must be there with these values.
    pub labels: KeyValues,
    /// Further demands.
    pub expressions: Vec<Requirement>,
}

/// One demand on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What of it is demanded.
    pub operator: Operator,
}

/// What is demanded of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operator {
    /// It is there and has one of these values.
    In(Vec<Arc<str>>),
    /// It is absent, or has none of these values.
    NotIn(Vec<Arc<str>>),
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl Selector {
    /// Whether `labels` meet every demand.
    pub fn matches(&self, labels: &KeyValues) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|demand| demand.is_met(labels))
    }

    /// Whether nothing is demanded.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// The keys of the labels that are looked at.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let expressions = self.expressions.iter().map(|demand| &*demand.key);
        self.labels.iter().map(|(key, _)| key).chain(expressions)
    }
}

impl Requirement {
    fn is_met(&self, labels: &KeyValues) -> bool {
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
        let labels: KeyValues = [("team", "payments"), ("tier", "")].into_iter().collect();
        let demand = |key: &str, operator| Selector {
            expressions: vec![Requirement {
                key: key.into(),
                operator,
            }],
            ..Selector::default()
        };
        let values = |all: &[&str]| all.iter().map(|value| (*value).into()).collect();
        for (selector, expected) in [
            (Selector::default(), true),
            (demand("team", Operator::In(values(&["payments"]))), true),
            (demand("team", Operator::In(values(&["shop"]))), false),
            (demand("none", Operator::In(values(&[""]))), false),
            (
                demand("team", Operator::NotIn(values(&["payments"]))),
                false,
            ),
            (demand("none", Operator::NotIn(values(&["x"]))), true),
            (demand("tier", Operator::Exists), true),
            (demand("none", Operator::Exists), false),
            (demand("none", Operator::DoesNotExist), true),
            (demand("tier", Operator::DoesNotExist), false),
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
