//! Layers: the sources of rules that a role must pass, each in a file of its own.

pub mod grants;
pub mod namespace;

use std::sync::Arc;

use jiff::Timestamp;

use crate::arn::RoleArn;
use crate::grant::GrantSession;
use crate::namespace::NamespaceRules;
use crate::needs::Needs;
use crate::workload::Workload;

/// How much a layer's refusal counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A refusal is a refusal.
    Enforce,
    /// A refusal is counted, told and logged; the answer is as if the layer were off.
    Audit,
    /// The layer is not asked.
    Off,
}

impl Mode {
    /// The mode's name, as written in configuration and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Off => "off",
        }
    }
}

/// What a layer is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who asks.
    pub workload: &'a Workload,
    /// For which role.
    pub role: &'a RoleArn,
    /// Whether the role is the default that the administrator gave to all pods.
    pub is_default: bool,
    /// The rules on the workload's namespace, and its labels.
    pub namespace: &'a NamespaceRules,
    /// The time, for rules that depend on it.
    pub now: Timestamp,
}

/// A layer's answer, with the rule that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The layer has nothing against it.
    Allow {
        /// The rule that allows.
        rule: String,
        /// What the rule makes of the session.
        session: Option<Arc<GrantSession>>,
    },
    /// The layer refuses.
    Deny {
        /// The rule that refuses; several are joined by commas.
        rule: String,
        /// One sentence for the pod's owner.
        reason: String,
        /// Whether it is of this moment, such as a policy that was not done in time, and not of the
        /// rules: it is to be asked again soon.
        passing: bool,
    },
}

impl Verdict {
    /// Allowed by `rule`, with nothing to say about the session.
    pub fn allow(rule: impl Into<String>) -> Self {
        Self::Allow {
            rule: rule.into(),
            session: None,
        }
    }

    /// Refused by `rule`.
    pub fn deny(rule: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Deny {
            rule: rule.into(),
            reason: reason.into(),
            passing: false,
        }
    }
}

/// One source of rules.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// The layer's name, for messages and labels.
    fn name(&self) -> &'static str;

    /// Judges one request; pure.
    fn judge(&self, ask: &Ask<'_>) -> Verdict;

    /// Which parts of a workload it looks at, beside namespace, service account and wish: two
    /// workloads that are the same in these get the same verdict.
    fn reads(&self) -> Reads {
        Reads::default()
    }

    /// Returns what it reads of pods and namespaces, besides the fields that are always kept.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Returns whether the verdict depends on labels or annotations that were not kept, as they are not
    /// while a rule that reads them is new: then it must not be asked.
    fn lacks(&self, _: &Ask<'_>) -> bool {
        false
    }

    /// Whether a verdict may change by the passing of time alone, so that it must be made again.
    fn reads_time(&self) -> bool {
        false
    }
}

/// Parts of a workload that a layer looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reads {
    /// Labels.
    pub labels: bool,
    /// Name and UID.
    pub pod: bool,
    /// Annotations beyond the wish, name, UID, node, host network.
    pub identity: bool,
}

/// A layer that is on.
#[derive(Debug, Clone)]
pub struct ActiveLayer {
    /// The rules.
    pub layer: Arc<dyn Layer>,
    /// [`Mode::Enforce`] or [`Mode::Audit`].
    pub mode: Mode,
}

/// What one layer said to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The layer's name.
    pub layer: &'static str,
    /// How much it counts.
    pub mode: Mode,
    /// What it said.
    pub verdict: Verdict,
}
