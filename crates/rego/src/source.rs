//! What comes in: ConfigMaps of policies and data, replicated objects, and where policies are
//! asked.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a policy is asked; the ConfigMap's annotation `rolegate.dev/points`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Points {
    /// At the gate: when the API server asks for an admission.
    pub gate: bool,
    /// At doors: when a pod that exists asks for credentials.
    pub door: bool,
}

impl Default for Points {
    /// The gate alone, as with OPA.
    fn default() -> Self {
        Self {
            gate: true,
            door: false,
        }
    }
}

/// A list of points that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no point: write gate, door or gate,door")]
pub struct PointsError(String);

impl Points {
    /// Reads `gate`, `door` or both with a comma between.
    ///
    /// # Errors
    /// [`PointsError`] where another word or none is there. A ConfigMap with such an annotation
    /// should be given both points: it is asked too often rather than not.
    pub fn parse(text: &str) -> Result<Self, PointsError> {
        let mut points = Self {
            gate: false,
            door: false,
        };
        for word in text.split(',').map(str::trim) {
            match word {
                "gate" => points.gate = true,
                "door" => points.door = true,
                other => return Err(PointsError(crate::text::clean(other, 64))),
            }
        }
        Ok(points)
    }
}

/// What a ConfigMap holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rego modules, one an entry (label `openpolicyagent.org/policy=rego`).
    Policy,
    /// Data, one JSON or YAML document an entry (label `openpolicyagent.org/data=opa`).
    Data,
}

/// Whether an entry of a ConfigMap is Rego by its name or by how it begins, comments aside.
pub fn looks_like_rego(entry: &str, text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let begins = first.and_then(|line| line.strip_prefix("package"));
    entry.ends_with(".rego") || begins.is_some_and(|rest| rest.starts_with([' ', '\t']))
}

/// A ConfigMap of policies or data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Policies or data.
    pub kind: Kind,
    /// Where its policies are asked.
    pub points: Points,
    /// `data`.
    pub entries: BTreeMap<String, String>,
}

impl PolicySource {
    /// `namespace/name`.
    pub fn id(&self) -> Arc<str> {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// A Kubernetes object that policies read as `data.kubernetes.<resource>[.<namespace>].<name>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicated {
    /// The plural, such as `namespaces`.
    pub resource: String,
    /// `metadata.namespace`; `None` for resources of the cluster.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// The object as JSON.
    pub object: Box<str>,
}

/// A required policy: namespace and name of its ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Required {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// What the administrator decides about policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Bounds.
    pub limits: crate::Limits,
    /// Policies that must be there and run. While one doesn't, everything is denied.
    pub required: Vec<Required>,
    /// Ask about a bare Pod also as each workload kind that a policy's text names.
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
            Points::parse("gate, door"),
            Ok(Points {
                gate: true,
                door: true
            })
        );
        assert_eq!(
            Points::parse("door"),
            Ok(Points {
                gate: false,
                door: true
            })
        );
        for wrong in ["", "gates", "gate,", "gate;door"] {
            assert!(Points::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
