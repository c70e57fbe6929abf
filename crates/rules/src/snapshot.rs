//! One state of the rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::config::{ResourceKind, RuleConfig};
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::Mode;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_rego::Policies;

use crate::in_force::RulesInForce;

/// Everything that a door, a gate or a mirror needs to decide. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// For doors: all layers.
    pub rules: RuleSet,
    /// For gates: without layer `rego`, since a gate asks policies about the whole review.
    pub gate: RuleSet,
    /// The configuration that counts.
    pub config: Arc<RuleConfig>,
    /// The grants.
    pub grants: Arc<GrantsLayer>,
    /// The policies.
    pub policies: Arc<Policies>,
    /// What keeps the rules from counting, in a sentence: while there is something, what it is
    /// about is refused.
    pub missing: Option<Arc<str>>,
    /// Which rules are in force, and where they come from.
    pub in_force: RulesInForce,
    /// What must be followed for these rules.
    pub needs: Needs,
}

/// How many ConfigMaps of policies and data fare how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyCounts {
    /// In use as they are written.
    pub ok: usize,
    /// They can't be used as they are; the version before is.
    pub outdated: usize,
    /// They never could be used.
    pub unusable: usize,
}

impl Snapshot {
    /// Whether policies are asked about reviews, so that the gate has to see everything that they may
    /// be about.
    pub fn asks_policies_at_gate(&self) -> bool {
        self.config.modes.rego != Mode::Off && self.policies.asks_at_gate()
    }
}

/// Something that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watch {
    /// The cluster's configuration.
    Config,
    /// Grants.
    Grants,
    /// ConfigMaps of a namespace.
    ConfigMaps(Arc<str>),
    /// Objects of a kind.
    Replicated(ResourceKind),
}

/// What must be followed, beside the configuration and namespaces' annotations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Grants.
    pub grants: bool,
    /// Namespaces of policies' ConfigMaps.
    pub config_maps: BTreeSet<Arc<str>>,
    /// Kinds whose objects policies read.
    pub replicated: BTreeSet<ResourceKind>,
}
