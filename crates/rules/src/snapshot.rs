//! A snapshot of the rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::config::{ResourceKind, RuleConfig};
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_rego::Policies;

use crate::in_force::RulesInForce;

/// Everything that agents, admission webhooks and the command line need to decide. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The rules for agents: all layers.
    pub rules: RuleSet,
    /// The rules for webhooks: all layers except `rego`, since admission evaluates policies on the
    /// whole review.
    pub admission: RuleSet,
    /// The configuration in force.
    pub config: Arc<RuleConfig>,
    /// The grants.
    pub grants: Arc<GrantsLayer>,
    /// The policies.
    pub policies: Arc<Policies>,
    /// The reason why every request is denied, a sentence; `None` if nothing is missing.
    pub missing: Option<Arc<str>>,
    /// The rules in force and their source.
    pub in_force: RulesInForce,
    /// The objects to watch for these rules.
    pub needs: Needs,
}

impl Snapshot {
    /// Returns true if policies are enforced at admission, so the webhook must receive all objects
    /// that they may cover.
    pub fn asks_policies_at_admission(&self) -> bool {
        self.config.modes[LayerId::Rego] != Mode::Off && self.policies.has_admission_policies()
    }
}

/// A watched resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watch {
    /// The cluster's configuration.
    Config,
    /// Grants.
    Grants,
    /// ConfigMaps of a namespace.
    ConfigMaps(Arc<str>),
    /// Objects of one kind.
    Replicated(ResourceKind),
}

/// The objects to watch in addition to the configuration and namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Grants.
    pub grants: bool,
    /// Namespaces of policy ConfigMaps.
    pub config_maps: BTreeSet<Arc<str>>,
    /// Kinds whose objects policies read.
    pub replicated: BTreeSet<ResourceKind>,
}
