//! Layers: sources of rules that a request must pass, one file for each.

pub mod grants;
pub mod namespace;

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::arn::RoleArn;
use crate::grant::GrantSession;
use crate::namespace::NamespaceRules;
use crate::needs::Needs;
use crate::workload::Workload;

/// Defines [`LayerId`] and everything that enumerates it from one list.
macro_rules! layer_ids {
    ($($(#[$documentation:meta])* $layer:ident = $name:literal,)+) => {
        /// A layer, by which configuration, decisions and messages identify it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum LayerId {
            $($(#[$documentation])* $layer,)+
        }

        impl LayerId {
            /// All layers, in the order in which they are evaluated.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$layer),+];

            /// Returns the name of the layer in configuration, messages and metric labels.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$layer => $name,)+
                }
            }
        }
    };
}

layer_ids! {
    /// Annotations of namespaces.
    Namespace = "namespace",
    /// `RoleGrant`s.
    Grants = "grants",
    /// Rego policies.
    Rego = "rego",
}

impl LayerId {
    /// Returns the layer with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.as_str() == name)
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The effect of a layer's denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Denials take effect.
    Enforce,
    /// Denials are counted, reported and logged, but do not change the decision.
    Audit,
    /// The layer is not evaluated.
    Off,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Enforce, Self::Audit, Self::Off];

    /// Returns the mode with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// Returns the name of the mode in configuration and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Off => "off",
        }
    }
}

/// The input of a layer: a workload and the role that it requests.
#[derive(Debug, Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The requesting workload.
    pub workload: &'a Workload,
    /// The requested role.
    pub role: &'a RoleArn,
    /// True if the role is the administrator's default for all pods.
    pub is_default: bool,
    /// The rules and labels of the workload's namespace.
    pub namespace: &'a NamespaceRules,
    /// The current time, for rules that depend on it.
    pub now: Timestamp,
}

/// The result of a layer, with the rule that determined it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The layer allows the request.
    Allow {
        /// The rule that allows the request.
        rule: String,
        /// Session settings of the rule.
        session: Option<Arc<GrantSession>>,
    },
    /// The layer denies the request.
    Deny {
        /// The rule that denies the request; several are joined by commas.
        rule: String,
        /// The reason, one sentence for the pod's owner.
        reason: String,
        /// True if the denial is caused by a temporary condition, such as a policy timeout, and not
        /// by the rules. The request is to be evaluated again soon.
        transient: bool,
    },
}

impl Verdict {
    /// Allows the request by `rule`, without session settings.
    pub fn allow(rule: impl Into<String>) -> Self {
        Self::Allow {
            rule: rule.into(),
            session: None,
        }
    }

    /// Denies the request by `rule`.
    pub fn deny(rule: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Deny {
            rule: rule.into(),
            reason: reason.into(),
            transient: false,
        }
    }
}

/// A source of rules.
pub trait Layer: Send + Sync + fmt::Debug {
    /// Returns the layer's identifier.
    fn id(&self) -> LayerId;

    /// Evaluates one request without side effects.
    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict;

    /// Returns the fields of a workload that the layer reads in addition to namespace, service
    /// account and role request. Workloads that are equal in these fields get the same verdict.
    fn reads(&self) -> WorkloadFields {
        WorkloadFields::default()
    }

    /// Returns the labels and annotations that the layer reads.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Returns true if the verdict depends on labels or annotations that are not stored, as happens
    /// after a rule that reads them was added. The layer must not be evaluated then.
    fn lacks(&self, _: &AccessRequest<'_>) -> bool {
        false
    }

    /// Returns true if verdicts can change with time alone, so they must not be cached.
    fn reads_time(&self) -> bool {
        false
    }
}

/// The fields of a workload that a layer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkloadFields {
    /// Labels.
    pub labels: bool,
    /// Name and UID.
    pub pod: bool,
    /// Name, UID, node, host network, and the annotations other than the role request.
    pub identity: bool,
}

/// An enabled layer.
#[derive(Debug, Clone)]
pub struct ActiveLayer {
    /// The rules.
    pub layer: Arc<dyn Layer>,
    /// [`Mode::Enforce`] or [`Mode::Audit`].
    pub mode: Mode,
}

/// The result of one layer for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerResult {
    /// The layer.
    pub layer: LayerId,
    /// The mode of the layer.
    pub mode: Mode,
    /// The verdict of the layer.
    pub verdict: Verdict,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_named_as_in_configuration() {
        let names = Mode::ALL.map(Mode::as_str);
        assert_eq!(names, ["enforce", "audit", "off"]);
        for mode in Mode::ALL {
            assert_eq!(Mode::parse(mode.as_str()), Some(mode));
        }
        assert_eq!(Mode::parse("on"), None);
    }

    #[test]
    fn layers_are_named_as_in_configuration() {
        assert_eq!(
            LayerId::ALL.map(LayerId::as_str),
            ["namespace", "grants", "rego"]
        );
        for (place, layer) in LayerId::ALL.into_iter().enumerate() {
            assert_eq!(layer as usize, place);
            assert_eq!(LayerId::parse(layer.as_str()), Some(layer));
            assert_eq!(layer.to_string(), layer.as_str());
        }
        for unknown in ["", "rules", "Grants", "request"] {
            assert_eq!(LayerId::parse(unknown), None, "{unknown}");
        }
    }
}
