//! The rulebook: everything that sources report about rules, and the [`RuleSet`] made of it.
//!
//! One owner writes it and hands out immutable rule sets. Each change makes a new generation, by
//! which decisions of an earlier one are known; nothing is decided here.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display};
use std::sync::Arc;

use crate::arn::{BaseArn, resolve};
use crate::config::RuleConfig;
use crate::decision::{OwnRole, RuleSet};
use crate::grant::Grant;
use crate::layer::grants::GrantsLayer;
use crate::layer::namespace::NamespaceLayer;
use crate::layer::{ActiveLayer, Layer, Mode};
use crate::namespace::{Namespace, NamespaceRules};
use crate::needs::Needs;
use crate::session_name::SessionScope;
use crate::workload::Change;

/// What was found out about where we run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What completes bare role names, where neither configuration nor flags say it.
    pub base: Option<BaseArn>,
    /// The node's and our own roles, refused to everyone beside those of the configuration.
    pub own_roles: Vec<OwnRole>,
    /// The longest life that STS gives to a session of ours, seconds: an hour where we call it with
    /// a role's session. `None` where it is each role's own.
    pub longest_session: Option<u32>,
}

/// The cluster's configuration object, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterConfig {
    /// There is none, and none is expected: flags count.
    NotUsed,
    /// It has not been looked for yet.
    Unseen,
    /// It was deleted, or is demanded and not there: everything is refused.
    Missing,
    /// It cannot be used: the one before stays, or everything is refused where there was none, or where
    /// that was deleted.
    Broken(InvalidConfig),
    /// It is there.
    Is(Arc<RuleConfig>),
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// A sentence that says what to do.
    pub reason: Arc<str>,
    /// The `metadata.generation` of the object; `None` where it is not known.
    pub generation: Option<i64>,
}

impl From<&str> for InvalidConfig {
    fn from(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            generation: None,
        }
    }
}

impl Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The source of the configuration in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RuleSource {
    /// The cluster's configuration has not been looked for yet.
    #[default]
    Unseen,
    /// The flags and environment variables of the process.
    Flags,
    /// The `RolegateConfig`, the last one that could be used.
    RolegateConfig {
        /// Its `metadata.generation`.
        generation: Option<i64>,
    },
    /// None: the `RolegateConfig` is missing, so everything is refused.
    Missing,
    /// None: the `RolegateConfig` is invalid, and none before it counts, so everything is refused.
    Invalid,
}

impl Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unseen => "not known yet",
            Self::Flags => "flags",
            Self::RolegateConfig { .. } => "RolegateConfig cluster",
            Self::Missing => "none: the RolegateConfig is missing, so every role is denied",
            Self::Invalid => "none: the RolegateConfig is invalid, so every role is denied",
        })
    }
}

/// A change of the rules.
#[derive(Debug, Clone)]
pub enum RuleUpdate {
    /// The configuration object.
    Config(ClusterConfig),
    /// Grants.
    Grants(Change<Grant>),
    /// Namespaces.
    Namespaces(Change<Namespace>),
    /// The names of all namespaces there are: every other one is gone.
    RetainNamespaces(HashSet<Arc<str>>),
}

/// How much of the rules a change touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Nothing that decisions depend on.
    Nothing,
    /// Decisions about this namespace's workloads.
    Namespace(Arc<str>),
    /// All decisions.
    All,
}

impl Touched {
    /// Whether decisions about workloads of `namespace` may be others now.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Namespace(touched) => **touched == *namespace,
            Self::All => true,
        }
    }
}

/// Everything known about rules.
#[derive(Debug)]
pub struct RuleBook {
    flags: Arc<RuleConfig>,
    scope: SessionScope,
    session_seconds: u32,
    config: ClusterConfig,
    /// The last configuration object that could be used.
    object: Option<Arc<RuleConfig>>,
    /// The same, completed by the flags.
    good: Option<Arc<RuleConfig>>,
    /// Whether it was deleted since: what is broken then has nothing to go back to.
    gone: bool,
    facts: Option<Facts>,
    namespaces: Arc<HashMap<Arc<str>, Arc<NamespaceRules>>>,
    namespaces_loaded: bool,
    grants: HashMap<Arc<str>, Grant>,
    grants_loaded: bool,
    grants_layer: Arc<GrantsLayer>,
    rego: Option<Arc<dyn Layer>>,
    generation: u64,
}

impl RuleBook {
    /// An empty book. `flags` count where the cluster has no configuration, and complete one that
    /// leaves something open.
    pub fn new(flags: RuleConfig, scope: SessionScope, session_seconds: u32) -> Self {
        Self {
            flags: Arc::new(flags),
            scope,
            session_seconds,
            config: ClusterConfig::NotUsed,
            object: None,
            good: None,
            gone: false,
            facts: None,
            namespaces: Arc::default(),
            namespaces_loaded: false,
            grants: HashMap::new(),
            grants_loaded: false,
            grants_layer: Arc::default(),
            rego: None,
            generation: 0,
        }
    }

    /// The configuration that counts, completed by the flags.
    pub fn config(&self) -> &Arc<RuleConfig> {
        self.good.as_ref().unwrap_or(&self.flags)
    }

    /// The cluster's configuration object, as far as it is known.
    pub fn cluster_config(&self) -> &ClusterConfig {
        &self.config
    }

    /// The source of the configuration that counts.
    pub fn source(&self) -> RuleSource {
        match (&self.config, &self.object) {
            (ClusterConfig::Unseen, _) => RuleSource::Unseen,
            (ClusterConfig::NotUsed, _) => RuleSource::Flags,
            (ClusterConfig::Missing, _) => RuleSource::Missing,
            (ClusterConfig::Is(object), _) => RuleSource::RolegateConfig {
                generation: object.generation,
            },
            (ClusterConfig::Broken(_), Some(object)) if !self.gone => RuleSource::RolegateConfig {
                generation: object.generation,
            },
            (ClusterConfig::Broken(_), _) => RuleSource::Invalid,
        }
    }

    /// The configuration object that counts, as it is written, without what flags add to it.
    pub fn object(&self) -> Option<&RuleConfig> {
        self.object.as_deref()
    }

    /// The roles that were found to be the node's or this process's own.
    pub fn found_own_roles(&self) -> &[OwnRole] {
        self.facts.as_ref().map_or(&[], |facts| &facts.own_roles)
    }

    /// The grants, compiled.
    pub fn grants(&self) -> &Arc<GrantsLayer> {
        &self.grants_layer
    }

    /// The grant of a name, as it was reported.
    pub fn grant(&self, name: &str) -> Option<&Grant> {
        self.grants.get(name)
    }

    /// The namespaces as they were reported.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values().map(|rules| rules.namespace())
    }

    /// Takes what was found out about where we run.
    pub fn learn(&mut self, facts: Facts) {
        self.facts = Some(facts);
        self.compile_all();
    }

    /// Takes the layer of Rego policies as it is now; `None`: not all that it needs is loaded.
    pub fn set_rego(&mut self, layer: Option<Arc<dyn Layer>>) {
        self.rego = layer;
        self.generation += 1;
    }

    /// Takes a change.
    pub fn update(&mut self, update: RuleUpdate) -> Touched {
        match update {
            RuleUpdate::Config(config) => self.set_config(config),
            RuleUpdate::Grants(change) => self.change_grants(change),
            RuleUpdate::Namespaces(change) => self.change_namespaces(change),
            RuleUpdate::RetainNamespaces(names) => self.retain_namespaces(&names),
        }
    }

    /// What has not been seen yet, and must be before anything is final.
    pub fn unseen(&self) -> Option<&'static str> {
        let modes = self.config().modes;
        if self.config == ClusterConfig::Unseen {
            Some("the cluster's configuration has not been seen")
        } else if self.facts.is_none() {
            Some("our own AWS identity is not known")
        } else if !self.namespaces_loaded {
            Some("namespaces are not loaded")
        } else if modes.grants == Mode::Enforce && !self.grants_loaded {
            Some("grants are not loaded")
        } else if modes.rego == Mode::Enforce && self.rego.is_none() {
            Some("policies are not loaded")
        } else {
            None
        }
    }

    /// Returns which parts of pods and namespaces the rules read; `None` while enabled rules are
    /// not loaded, in either mode.
    pub fn needs(&self, rules: &RuleSet) -> Option<Needs> {
        let modes = self.config().modes;
        let is_known = self.config != ClusterConfig::Unseen
            && (modes.grants == Mode::Off || self.grants_loaded)
            && (modes.rego == Mode::Off || self.rego.is_some());
        is_known.then(|| rules.needs())
    }

    /// What keeps the rules from counting, in a sentence for whoever is refused for it.
    pub fn missing(&self) -> Option<Arc<str>> {
        match &self.config {
            ClusterConfig::Missing => Some(
                "the cluster's RolegateConfig named cluster is missing: everything is refused until \
                 an administrator restores it"
                    .into(),
            ),
            ClusterConfig::Broken(why) if self.good.is_none() || self.gone => Some(
                format!("the cluster's RolegateConfig cannot be used ({why}): everything is refused")
                    .into(),
            ),
            _ => None,
        }
    }

    /// An immutable snapshot.
    pub fn rule_set(&self) -> RuleSet {
        let config = self.config();
        let facts = self.facts.clone().unwrap_or_default();
        let base = config.base.clone().or(facts.base);
        let mut own_roles = config.own_roles.clone();
        own_roles.extend(facts.own_roles);
        let namespace = NamespaceLayer {
            allow_unannotated: config.allow_unannotated,
        };
        let layers: [(Mode, Option<Arc<dyn Layer>>); 3] = [
            (config.modes.namespace, Some(Arc::new(namespace))),
            (config.modes.grants, Some(self.grants_layer.clone())),
            (config.modes.rego, self.rego.clone()),
        ];
        RuleSet {
            default_role: config
                .default_role
                .as_deref()
                .and_then(|name| resolve(name, base.as_ref()).ok()),
            base,
            own_roles,
            scope: self.scope,
            session_seconds: self.session_seconds,
            layers: layers
                .into_iter()
                .filter(|(mode, _)| *mode != Mode::Off)
                .filter_map(|(mode, layer)| {
                    Some(ActiveLayer {
                        layer: layer?,
                        mode,
                    })
                })
                .collect(),
            namespaces: self.namespaces.clone(),
            longest_session: facts.longest_session,
            cluster: config.cluster.clone(),
            attribution: config.attribution,
            missing: self.missing(),
            unseen: self.unseen(),
            generation: self.generation,
        }
    }

    fn set_config(&mut self, config: ClusterConfig) -> Touched {
        if self.config == config {
            return Touched::Nothing;
        }
        match &config {
            ClusterConfig::Is(_) | ClusterConfig::NotUsed => self.gone = false,
            ClusterConfig::Missing => self.gone = true,
            ClusterConfig::Unseen | ClusterConfig::Broken(_) => {}
        }
        match &config {
            ClusterConfig::Is(good) => {
                self.object = Some(good.clone());
                self.good = Some(Arc::new(good.completed_by(&self.flags)));
            }
            ClusterConfig::NotUsed => {
                self.object = None;
                self.good = None;
            }
            // What it said last still shapes the rules, though nothing is allowed by them.
            ClusterConfig::Unseen | ClusterConfig::Missing | ClusterConfig::Broken(_) => {}
        }
        self.config = config;
        self.compile_all();
        Touched::All
    }

    /// Grants are no longer followed, so those that are known may be out of date.
    pub fn forget_grants(&mut self) -> Touched {
        self.grants.clear();
        self.grants_loaded = false;
        self.compile_grants();
        Touched::All
    }

    fn change_grants(&mut self, change: Change<Grant>) -> Touched {
        let first = !self.grants_loaded;
        match change {
            Change::Snapshot(all) => {
                self.grants_loaded = true;
                let all: HashMap<_, _> = all
                    .into_iter()
                    .map(|grant| (grant.name.clone(), grant))
                    .collect();
                if !first && self.grants == all {
                    return Touched::Nothing;
                }
                self.grants = all;
            }
            Change::Apply(grant) => {
                if self.grants.get(&grant.name) == Some(&grant) {
                    return Touched::Nothing;
                }
                self.grants.insert(grant.name.clone(), grant);
            }
            Change::Delete(grant) => {
                if self.grants.remove(&grant.name).is_none() {
                    return Touched::Nothing;
                }
            }
        }
        self.compile_grants();
        Touched::All
    }

    fn change_namespaces(&mut self, change: Change<Namespace>) -> Touched {
        match change {
            Change::Snapshot(all) => {
                self.namespaces_loaded = true;
                self.compile_namespaces(&all);
                Touched::All
            }
            Change::Apply(namespace) => {
                let name = namespace.name.clone();
                let before = self.namespaces.get(&name);
                if before.is_some_and(|before| *before.namespace() == namespace) {
                    return Touched::Nothing;
                }
                let rules = Arc::new(self.compile_namespace(&namespace));
                Arc::make_mut(&mut self.namespaces).insert(name.clone(), rules);
                self.generation += 1;
                Touched::Namespace(name)
            }
            Change::Delete(namespace) => {
                Arc::make_mut(&mut self.namespaces).remove(&namespace.name);
                self.generation += 1;
                Touched::Namespace(namespace.name)
            }
        }
    }

    fn retain_namespaces(&mut self, names: &HashSet<Arc<str>>) -> Touched {
        if self.namespaces.keys().all(|name| names.contains(name)) {
            return Touched::Nothing;
        }
        Arc::make_mut(&mut self.namespaces).retain(|name, _| names.contains(name));
        self.generation += 1;
        Touched::All
    }

    fn base(&self) -> Option<&BaseArn> {
        let found = self.facts.as_ref().and_then(|facts| facts.base.as_ref());
        self.config().base.as_ref().or(found)
    }

    fn compile_all(&mut self) {
        self.compile_grants();
        let before = self.namespaces.clone();
        self.compile_namespaces(before.values().map(|rules| rules.namespace()));
    }

    fn compile_grants(&mut self) {
        self.grants_layer = Arc::new(GrantsLayer::new(self.grants.values(), self.base()));
        self.generation += 1;
    }

    fn compile_namespaces<'a>(&mut self, all: impl IntoIterator<Item = &'a Namespace>) {
        let compiled = all.into_iter().map(|namespace| {
            let rules = self.compile_namespace(namespace);
            (namespace.name.clone(), Arc::new(rules))
        });
        self.namespaces = Arc::new(compiled.collect());
        self.generation += 1;
    }

    fn compile_namespace(&self, namespace: &Namespace) -> NamespaceRules {
        NamespaceRules::new(namespace, self.base(), self.config().restriction_format)
    }
}

#[cfg(test)]
mod tests;
