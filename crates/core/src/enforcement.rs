//! The points at which decisions are enforced.

/// A point at which a decision is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnforcementPoint {
    /// The admission webhook, when an object is created or changed.
    Admission,
    /// An agent, when a pod requests credentials.
    Agent,
}

impl EnforcementPoint {
    /// Returns the name used in annotations, outputs and the metric label `enforcement_point`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Agent => "agent",
        }
    }
}
