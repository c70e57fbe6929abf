//! Inputs of the policy store: ConfigMaps with policies and data, replicated objects, and
//! enforcement points.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The points that enforce a policy, from the ConfigMap's annotation
/// `rolegate.dev/enforcement-points`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnforcementPoints {
    /// Enforced at admission, when the API server sends a review.
    pub admission: bool,
    /// Enforced at agents, when an existing pod requests credentials.
    pub agent: bool,
}

impl Default for EnforcementPoints {
    /// Returns admission alone, as with OPA.
    fn default() -> Self {
        Self {
            admission: true,
            agent: false,
        }
    }
}

/// An invalid list of enforcement points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an enforcement point: write admission, agent or admission,agent")]
pub struct PointsError(String);

impl EnforcementPoints {
    /// Parses `admission`, `agent`, or both separated by a comma.
    ///
    /// # Errors
    /// [`PointsError`] if the list is empty or contains another word. A ConfigMap with such an
    /// annotation should be enforced at both points, which is the safe choice.
    pub fn parse(text: &str) -> Result<Self, PointsError> {
        let mut points = Self {
            admission: false,
            agent: false,
        };
        for word in text.split(',').map(str::trim) {
            match word {
                "admission" => points.admission = true,
                "agent" => points.agent = true,
                other => return Err(PointsError(crate::text::clean(other, 64))),
            }
        }
        Ok(points)
    }
}

/// The content type of a ConfigMap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rego modules, one in each entry (label `openpolicyagent.org/policy=rego`).
    Policy,
    /// Data, one JSON or YAML document in each entry (label `openpolicyagent.org/data=opa`).
    Data,
}

/// Returns true if an entry of a ConfigMap is Rego, judging by its name or by its first words after
/// comments.
pub fn looks_like_rego(entry: &str, text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let begins = first.and_then(|line| line.strip_prefix("package"));
    entry.ends_with(".rego") || begins.is_some_and(|rest| rest.starts_with([' ', '\t']))
}

/// A ConfigMap with policies or data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The content type.
    pub kind: Kind,
    /// The points that enforce its policies.
    pub points: EnforcementPoints,
    /// `data`.
    pub entries: BTreeMap<String, String>,
}

impl PolicySource {
    /// Returns `namespace/name`.
    pub fn id(&self) -> Arc<str> {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// A Kubernetes object that policies read as `data.kubernetes.<resource>[.<namespace>].<name>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicated {
    /// The plural name, such as `namespaces`.
    pub resource: String,
    /// `metadata.namespace`; `None` for cluster-scoped resources.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// The object as JSON.
    pub object: Box<str>,
}

/// A required policy, by the namespace and name of its ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Required {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// The administrator's settings for policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Limits of policies and data.
    pub limits: crate::Limits,
    /// Policies that must be valid and in use. While one is not, every request is denied.
    pub required: Vec<Required>,
    /// True to also evaluate a bare Pod as each workload kind that a policy's text names.
    pub wrap_pods: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rego_begins_with_its_package_or_has_its_name() {
        for text in [
            "package a",
            "# of team b\n\n  package\ta.b\n",
            "\r\npackage a\r\n",
        ] {
            assert!(looks_like_rego("main", text), "{text:?}");
        }
        assert!(looks_like_rego("main.rego", "pakage a"));
        for text in [
            "",
            "# package a",
            "-----BEGIN CERTIFICATE-----",
            "packages: [a]",
        ] {
            assert!(!looks_like_rego("ca.crt", text), "{text:?}");
        }
    }

    #[test]
    fn points_are_a_list_of_known_words() {
        assert_eq!(
            EnforcementPoints::parse("admission, agent"),
            Ok(EnforcementPoints {
                admission: true,
                agent: true
            })
        );
        assert_eq!(
            EnforcementPoints::parse("agent"),
            Ok(EnforcementPoints {
                admission: false,
                agent: true
            })
        );
        for wrong in ["", "webhooks", "admission,", "admission;agent"] {
            assert!(EnforcementPoints::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
