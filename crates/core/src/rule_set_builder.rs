//! The rule set builder: the current state of all rule sources, from which it builds [`RuleSet`]s.
//!
//! A single owner updates it and publishes immutable rule sets. Each change increases the
//! generation, which identifies outdated decisions. The builder itself makes no decisions.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display};
use std::sync::Arc;

use crate::arn::{BaseArn, resolve};
use crate::config::RuleConfig;
use crate::decision::{NotSynced, ReservedRole, RuleSet};
use crate::grant::Grant;
use crate::layer::grants::GrantsLayer;
use crate::layer::namespace::NamespaceLayer;
use crate::layer::{ActiveLayer, Layer, LayerId, Mode};
use crate::namespace::{Namespace, NamespaceRules};
use crate::needs::Needs;
use crate::session_name::SessionScope;
use crate::workload::{Change, Workload};

/// Facts about the AWS environment that a process detects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsEnvironment {
    /// The base ARN that completes bare role names, unless the configuration or flags set one.
    pub base: Option<BaseArn>,
    /// Roles of the node and of rolegate, reserved in addition to those of the configuration.
    pub reserved_roles: Vec<ReservedRole>,
    /// Maximum session duration that STS grants to rolegate, in seconds: an hour if it calls STS
    /// with a role's session. `None` if each role's own limit applies.
    pub max_session_seconds: Option<u32>,
}

/// The state of the cluster's configuration object.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterConfig {
    /// The cluster has none and none is expected, so flags apply.
    Unused,
    /// The source has not synced yet.
    NotSynced,
    /// The object was deleted, or is required but missing. Every request is denied.
    Missing,
    /// The object is invalid. The previous valid one stays in force; without one, or if it was
    /// deleted, every request is denied.
    Invalid(InvalidConfig),
    /// The object is valid.
    Valid(Arc<RuleConfig>),
}

/// The error of an invalid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// A sentence that explains how to correct it.
    pub reason: Arc<str>,
    /// The `metadata.generation` of the object; `None` if unknown.
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
    /// The source has not synced yet.
    #[default]
    NotSynced,
    /// The flags and environment variables of the process.
    Flags,
    /// The last valid `RolegateConfig`.
    RolegateConfig {
        /// Its `metadata.generation`.
        generation: Option<i64>,
    },
    /// None: the `RolegateConfig` is missing, so every request is denied.
    Missing,
    /// None: the `RolegateConfig` is invalid and there is no previous one, so every request is
    /// denied.
    Invalid,
}

impl Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSynced => "not known yet",
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
    /// The state of the configuration object.
    Config(ClusterConfig),
    /// A change of grants.
    Grants(Change<Grant>),
    /// A change of namespaces.
    Namespaces(Change<Namespace>),
    /// The names of all existing namespaces. All others were deleted.
    RetainNamespaces(HashSet<Arc<str>>),
}

/// The decisions that a change invalidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidated {
    /// None.
    Nothing,
    /// Decisions about workloads of this namespace.
    Namespace(Arc<str>),
    /// The roles of this service account.
    ServiceAccount {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// All decisions.
    All,
}

impl Invalidated {
    /// Returns true if decisions about `workload` are invalidated.
    pub fn includes(&self, workload: &Workload) -> bool {
        match self {
            Self::Nothing => false,
            Self::Namespace(touched) => *touched == workload.namespace,
            Self::ServiceAccount { namespace, name } => {
                *namespace == workload.namespace && *name == workload.service_account
            }
            Self::All => true,
        }
    }
}

/// The state of all rule sources.
#[derive(Debug)]
pub struct RuleSetBuilder {
    flags: Arc<RuleConfig>,
    scope: SessionScope,
    session_seconds: u32,
    config: ClusterConfig,
    /// The last valid configuration object.
    object: Option<Arc<RuleConfig>>,
    /// `object` with its unset values filled from the flags.
    good: Option<Arc<RuleConfig>>,
    /// True if `object` has been deleted since. An invalid object that is created next then denies
    /// everything, instead of leaving the deleted one in force.
    gone: bool,
    aws_environment: Option<AwsEnvironment>,
    namespaces: Arc<HashMap<Arc<str>, Arc<NamespaceRules>>>,
    namespaces_synced: bool,
    grants: HashMap<Arc<str>, Grant>,
    grants_synced: bool,
    grants_layer: Arc<GrantsLayer>,
    rego: Option<Arc<dyn Layer>>,
    generation: u64,
}

impl RuleSetBuilder {
    /// Creates an empty builder. `flags` apply if the cluster has no configuration, and complete
    /// one with unset values.
    pub fn new(flags: RuleConfig, scope: SessionScope, session_seconds: u32) -> Self {
        Self {
            flags: Arc::new(flags),
            scope,
            session_seconds,
            config: ClusterConfig::Unused,
            object: None,
            good: None,
            gone: false,
            aws_environment: None,
            namespaces: Arc::default(),
            namespaces_synced: false,
            grants: HashMap::new(),
            grants_synced: false,
            grants_layer: Arc::default(),
            rego: None,
            generation: 0,
        }
    }

    /// Returns the configuration in force, completed by the flags.
    pub fn config(&self) -> &Arc<RuleConfig> {
        self.good.as_ref().unwrap_or(&self.flags)
    }

    /// Returns the state of the cluster's configuration object.
    pub fn cluster_config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Returns the source of the configuration in force.
    pub fn source(&self) -> RuleSource {
        match (&self.config, &self.object) {
            (ClusterConfig::NotSynced, _) => RuleSource::NotSynced,
            (ClusterConfig::Unused, _) => RuleSource::Flags,
            (ClusterConfig::Missing, _) => RuleSource::Missing,
            (ClusterConfig::Valid(object), _) => RuleSource::RolegateConfig {
                generation: object.generation,
            },
            (ClusterConfig::Invalid(_), Some(object)) if !self.gone => RuleSource::RolegateConfig {
                generation: object.generation,
            },
            (ClusterConfig::Invalid(_), _) => RuleSource::Invalid,
        }
    }

    /// Returns the configuration object in force as written, without the values of flags.
    pub fn object(&self) -> Option<&RuleConfig> {
        self.object.as_deref()
    }

    /// Returns the detected roles of the node and of this process.
    pub fn detected_reserved_roles(&self) -> &[ReservedRole] {
        self.aws_environment
            .as_ref()
            .map_or(&[], |aws_environment| &aws_environment.reserved_roles)
    }

    /// Returns the compiled grants.
    pub fn grants(&self) -> &Arc<GrantsLayer> {
        &self.grants_layer
    }

    /// Returns a grant as reported, by name.
    pub fn grant(&self, name: &str) -> Option<&Grant> {
        self.grants.get(name)
    }

    /// Returns the namespaces as reported.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values().map(|rules| rules.namespace())
    }

    /// Sets the detected facts about the AWS environment.
    pub fn set_aws_environment(&mut self, aws_environment: AwsEnvironment) {
        self.aws_environment = Some(aws_environment);
        self.compile_all();
    }

    /// Sets the layer of Rego policies; `None` until everything that it needs is loaded.
    pub fn set_rego(&mut self, layer: Option<Arc<dyn Layer>>) {
        self.rego = layer;
        self.generation += 1;
    }

    /// Applies a change.
    pub fn update(&mut self, update: RuleUpdate) -> Invalidated {
        match update {
            RuleUpdate::Config(config) => self.set_config(config),
            RuleUpdate::Grants(change) => self.change_grants(change),
            RuleUpdate::Namespaces(change) => self.change_namespaces(change),
            RuleUpdate::RetainNamespaces(names) => self.retain_namespaces(&names),
        }
    }

    /// Returns the first part of the rules that has not synced yet. No decision is final before.
    pub fn not_synced(&self) -> Option<NotSynced> {
        let modes = self.config().modes;
        if self.config == ClusterConfig::NotSynced {
            Some(NotSynced::Config)
        } else if self.aws_environment.is_none() {
            Some(NotSynced::Identity)
        } else if !self.namespaces_synced {
            Some(NotSynced::Namespaces)
        } else if modes[LayerId::Grants] == Mode::Enforce && !self.grants_synced {
            Some(NotSynced::Grants)
        } else if modes[LayerId::Rego] == Mode::Enforce && self.rego.is_none() {
            Some(NotSynced::Policies)
        } else {
            None
        }
    }

    /// Returns which parts of pods and namespaces the rules read; `None` while enabled rules are
    /// not loaded, in either mode.
    pub fn needs(&self, rules: &RuleSet) -> Option<Needs> {
        let modes = self.config().modes;
        let is_known = self.config != ClusterConfig::NotSynced
            && (modes[LayerId::Grants] == Mode::Off || self.grants_synced)
            && (modes[LayerId::Rego] == Mode::Off || self.rego.is_some());
        is_known.then(|| rules.needs())
    }

    /// Returns the reason, a sentence for pods' owners, why every request is denied regardless of
    /// the rules.
    pub fn missing(&self) -> Option<Arc<str>> {
        match &self.config {
            ClusterConfig::Missing => Some(
                "the cluster's RolegateConfig named cluster is missing: every role is denied \
                 until an administrator restores it"
                    .into(),
            ),
            ClusterConfig::Invalid(why) if self.good.is_none() || self.gone => Some(
                format!(
                    "the cluster's RolegateConfig is invalid ({why}): every role is denied \
                         until an administrator corrects it"
                )
                .into(),
            ),
            _ => None,
        }
    }

    /// Builds an immutable rule set.
    pub fn rule_set(&self) -> RuleSet {
        let config = self.config();
        let aws_environment = self.aws_environment.clone().unwrap_or_default();
        let base = config.base.clone().or(aws_environment.base);
        let mut reserved_roles = config.reserved_roles.clone();
        reserved_roles.extend(aws_environment.reserved_roles);
        RuleSet {
            default_role: config
                .default_role
                .as_deref()
                .and_then(|name| resolve(name, base.as_ref()).ok()),
            base,
            reserved_roles,
            scope: self.scope,
            session_seconds: self.session_seconds,
            layers: LayerId::ALL
                .into_iter()
                .filter(|id| config.modes[*id] != Mode::Off)
                .filter_map(|id| {
                    Some(ActiveLayer {
                        mode: config.modes[id],
                        layer: self.layer(id)?,
                    })
                })
                .collect(),
            namespaces: self.namespaces.clone(),
            max_session_seconds: aws_environment.max_session_seconds,
            cluster: config.cluster.clone(),
            attribution: config.attribution,
            associations: match config.modes[LayerId::Grants] {
                Mode::Off => Arc::default(),
                Mode::Enforce | Mode::Audit => self.grants_layer.associations().clone(),
            },
            missing: self.missing(),
            not_synced: self.not_synced(),
            generation: self.generation,
        }
    }

    /// Returns the current rules of a layer, if they are loaded.
    fn layer(&self, id: LayerId) -> Option<Arc<dyn Layer>> {
        match id {
            LayerId::Namespace => Some(Arc::new(NamespaceLayer {
                allow_unannotated: self.config().allow_unannotated,
            })),
            LayerId::Grants => Some(self.grants_layer.clone()),
            LayerId::Rego => self.rego.clone(),
        }
    }

    fn set_config(&mut self, config: ClusterConfig) -> Invalidated {
        if self.config == config {
            return Invalidated::Nothing;
        }
        match &config {
            ClusterConfig::Valid(_) | ClusterConfig::Unused => self.gone = false,
            ClusterConfig::Missing => self.gone = true,
            ClusterConfig::NotSynced | ClusterConfig::Invalid(_) => {}
        }
        match &config {
            ClusterConfig::Valid(good) => {
                self.object = Some(good.clone());
                self.good = Some(Arc::new(good.with_defaults_from(&self.flags)));
            }
            ClusterConfig::Unused => {
                self.object = None;
                self.good = None;
            }
            // The last configuration stays, although nothing is allowed by it.
            ClusterConfig::NotSynced | ClusterConfig::Missing | ClusterConfig::Invalid(_) => {}
        }
        self.config = config;
        self.compile_all();
        Invalidated::All
    }

    /// Discards the grants when they are no longer watched, since they could be out of date.
    pub fn forget_grants(&mut self) -> Invalidated {
        self.grants.clear();
        self.grants_synced = false;
        self.compile_grants();
        Invalidated::All
    }

    fn change_grants(&mut self, change: Change<Grant>) -> Invalidated {
        let first = !self.grants_synced;
        match change {
            Change::Snapshot(all) => {
                self.grants_synced = true;
                let all: HashMap<_, _> = all
                    .into_iter()
                    .map(|grant| (grant.name.clone(), grant))
                    .collect();
                if !first && self.grants == all {
                    return Invalidated::Nothing;
                }
                self.grants = all;
            }
            Change::Apply(grant) => {
                if self.grants.get(&grant.name) == Some(&grant) {
                    return Invalidated::Nothing;
                }
                self.grants.insert(grant.name.clone(), grant);
            }
            Change::Delete(grant) => {
                if self.grants.remove(&grant.name).is_none() {
                    return Invalidated::Nothing;
                }
            }
        }
        self.compile_grants();
        Invalidated::All
    }

    fn change_namespaces(&mut self, change: Change<Namespace>) -> Invalidated {
        match change {
            Change::Snapshot(all) => {
                self.namespaces_synced = true;
                self.compile_namespaces(&all);
                Invalidated::All
            }
            Change::Apply(namespace) => {
                let name = namespace.name.clone();
                let before = self.namespaces.get(&name);
                if before.is_some_and(|before| *before.namespace() == namespace) {
                    return Invalidated::Nothing;
                }
                let rules = Arc::new(self.compile_namespace(&namespace));
                Arc::make_mut(&mut self.namespaces).insert(name.clone(), rules);
                self.generation += 1;
                Invalidated::Namespace(name)
            }
            Change::Delete(namespace) => {
                Arc::make_mut(&mut self.namespaces).remove(&namespace.name);
                self.generation += 1;
                Invalidated::Namespace(namespace.name)
            }
        }
    }

    fn retain_namespaces(&mut self, names: &HashSet<Arc<str>>) -> Invalidated {
        if self.namespaces.keys().all(|name| names.contains(name)) {
            return Invalidated::Nothing;
        }
        Arc::make_mut(&mut self.namespaces).retain(|name, _| names.contains(name));
        self.generation += 1;
        Invalidated::All
    }

    fn base(&self) -> Option<&BaseArn> {
        let found = self
            .aws_environment
            .as_ref()
            .and_then(|aws_environment| aws_environment.base.as_ref());
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
