//! Layers: the sources of rules that a role must pass, each in a file of its own.

pub mod namespace;

use crate::arn::RoleArn;
use crate::namespace::NamespaceRules;
use crate::workload::Workload;

/// What a layer is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who asks.
    pub workload: &'a Workload,
    /// For which role.
    pub role: &'a RoleArn,
    /// Whether the role is the default that the administrator gave to all pods.
    pub is_default: bool,
    /// The rules on the workload's namespace.
    pub namespace: &'a NamespaceRules,
}

/// A layer's answer, with the rule that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The layer has nothing against it.
    Allow {
        /// The rule that allows.
        rule: String,
    },
    /// The layer refuses.
    Deny {
        /// The rule that refuses.
        rule: String,
        /// One sentence for the pod's owner.
        reason: String,
    },
}

/// One source of rules.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// The layer's name, for messages and labels.
    fn name(&self) -> &'static str;
    /// Judges one request; pure.
    fn judge(&self, ask: &Ask<'_>) -> Verdict;
}
