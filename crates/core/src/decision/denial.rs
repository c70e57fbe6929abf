//! Denials: their sources, the denied part of the request, and the message for the pod's owner.

use std::fmt::{self, Display};

use serde::{Serialize, Serializer};

use crate::layer::LayerId;

/// The source of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialSource {
    /// A layer.
    Layer(LayerId),
    /// The request itself, which is malformed or cannot be evaluated.
    Request,
    /// The reserved roles.
    ReservedRole,
    /// Required rules are missing. Every request is denied until they are available.
    MissingRules,
    /// A source that this version does not know, as a newer broker reports it.
    Unknown,
}

impl DenialSource {
    /// The sources other than layers that a process reports.
    const OTHERS: [Self; 3] = [Self::Request, Self::ReservedRole, Self::MissingRules];

    /// Returns the name of the source in messages, metric labels and the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Layer(layer) => layer.as_str(),
            Self::Request => "request",
            Self::ReservedRole => "reserved-role",
            Self::MissingRules => "rules",
            Self::Unknown => "broker",
        }
    }

    /// Returns the source with this name. The result is one of a fixed set, whatever the text, so
    /// its name can be a metric label.
    pub fn parse(name: &str) -> Self {
        let layer = LayerId::parse(name).map(Self::Layer);
        let other = || {
            Self::OTHERS
                .into_iter()
                .find(|source| source.as_str() == name)
        };
        layer.or_else(other).unwrap_or(Self::Unknown)
    }
}

impl From<LayerId> for DenialSource {
    fn from(layer: LayerId) -> Self {
        Self::Layer(layer)
    }
}

impl Serialize for DenialSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Display for DenialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A part of a role request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RequestField {
    /// The role.
    #[default]
    Role,
    /// The external ID.
    ExternalId,
    /// The session name.
    SessionName,
}

/// A denial, reported to the pod's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {role} is refused by {denied_by}: {reason}")]
pub struct Denial {
    /// The requested role as far as it is known, truncated.
    pub role: String,
    /// The source of the denial.
    pub denied_by: DenialSource,
    /// The rule within the source.
    pub rule: String,
    /// The part of the role request that is denied.
    pub field: RequestField,
    /// The reason, one sentence.
    pub reason: String,
    /// True if the denial is temporary and not caused by the rules, see [`Verdict::Deny`](crate::layer::Verdict::Deny).
    pub transient: bool,
}

impl Denial {
    /// Creates a denial of the role.
    pub fn new(
        role: impl ToString,
        denied_by: impl Into<DenialSource>,
        rule: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            role: role.to_string(),
            denied_by: denied_by.into(),
            rule: rule.into(),
            field: RequestField::Role,
            reason: reason.into(),
            transient: false,
        }
    }

    /// Returns the same denial of another part of the request.
    #[must_use]
    pub fn about(self, field: RequestField) -> Self {
        Self { field, ..self }
    }

    /// Returns the message for the pod's owner, which the response to the pod and the Event
    /// contain: the denial, its reason and a remedy.
    pub fn owner_message(&self) -> String {
        match self.remedy() {
            Some(remedy) => format!("{self}; {remedy}"),
            None => self.to_string(),
        }
    }

    fn remedy(&self) -> Option<&'static str> {
        match self.denied_by {
            DenialSource::Layer(LayerId::Namespace) => {
                Some("to allow it, an administrator of the namespace must change its annotations")
            }
            DenialSource::ReservedRole => Some("request another role"),
            DenialSource::Request => Some("correct the pod's annotations"),
            DenialSource::Layer(LayerId::Rego) => {
                Some("change the pod as the policy requires, or ask your cluster's administrator")
            }
            // The reason itself names the person to contact.
            DenialSource::Layer(LayerId::Grants)
            | DenialSource::MissingRules
            | DenialSource::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_keep_their_names() {
        let layers = LayerId::ALL.map(DenialSource::Layer);
        let sources = layers.into_iter().chain(DenialSource::OTHERS);
        for source in sources {
            assert_eq!(DenialSource::parse(source.as_str()), source);
        }
        for unknown in ["", "all", "guard", "broker", "Rules"] {
            assert_eq!(DenialSource::parse(unknown), DenialSource::Unknown);
        }
        assert_eq!(
            DenialSource::OTHERS.map(DenialSource::as_str),
            ["request", "reserved-role", "rules"]
        );
        assert_eq!(DenialSource::Unknown.as_str(), "broker");
    }
}
