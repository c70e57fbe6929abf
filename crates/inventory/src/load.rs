//! Converts objects into rules, pods and grants, with the configuration in force.

use rolegate_api::RoleGrant;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::grant::Grant;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::workload::Workload;
use rolegate_review::{ValidationRules, WebIdentity};
use rolegate_rules::snapshot::Snapshot;
use rolegate_rules::store::RuleStoreWriter;
use serde::Deserialize;
use serde_json::Value;

use crate::base_arn::{MAX_BASE_ARNS, candidates};
use crate::basis::{Basis, Source};
use crate::in_force::{Deciding, FlagSources, InForce, InForceError, PlacedConfig};
use crate::names::{Names, RuleKind, Unusable};
use crate::object::{is_config, is_ours};
use crate::objects::Objects;
use crate::offline::{self, OfflineOptions};

/// Assumptions about the rules that replace the configuration in force.
#[derive(Debug, Clone, Default)]
pub struct Assumed {
    /// The base ARN, if it is unknown.
    pub base: Option<BaseArn>,
    /// The modes of the layers.
    pub modes: Option<Modes>,
    /// The rules of the cluster's admission webhook. It completes role names by the `baseRoleArn` of
    /// the RolegateConfig alone: it runs on no particular node, and does not have the agents' flags.
    pub is_webhook: bool,
}

impl Assumed {
    /// Assumes a base ARN only.
    pub fn base(base: BaseArn) -> Self {
        Self {
            base: Some(base),
            ..Self::default()
        }
    }
}

/// The reason why rules cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration in force is unknown.
    #[error(transparent)]
    InForce(#[from] InForceError),
    /// A malformed rule, with its file and line.
    #[error("{0}")]
    UnusableRule(String),
    /// A grant is malformed.
    #[error("cannot parse a RoleGrant")]
    Grant(#[source] serde_json::Error),
}

impl Objects {
    /// Returns the rules and pods with the configuration in force.
    ///
    /// # Errors
    /// Returns a [`LoadError`] for a malformed object, with its file and line, or if the configuration
    /// in force is unknown.
    pub fn load(&self, sources: &FlagSources) -> Result<Loaded, LoadError> {
        self.load_as(sources, &Assumed::default())
    }

    /// Returns the rules and pods with the configuration in force, with parts of it assumed.
    ///
    /// # Errors
    /// Returns a [`LoadError`] as [`Self::load`] does.
    pub fn load_as(&self, sources: &FlagSources, assumed: &Assumed) -> Result<Loaded, LoadError> {
        let config = self
            .placed()
            .find(|(value, _)| is_config(value))
            .map(|(object, place)| PlacedConfig {
                object,
                place: place.as_deref(),
            });
        let mut in_force = sources.in_force(config, self.need)?;
        if let Some(base) = &assumed.base {
            in_force.deciding.flags.base = Some(base.clone());
        }
        let counts = matches!(in_force.source, Source::RolegateConfig { .. });
        if assumed.is_webhook && counts && sources.agents.is_some() {
            in_force.deciding.flags.base = None;
        }
        let kept = self
            .placed()
            .filter(|(value, _)| counts || !is_config(value));
        let (values, places): (Vec<Value>, Vec<Option<String>>) = kept
            .map(|(value, place)| (value.clone(), place.clone()))
            .unzip();
        let deciding = &in_force.deciding;
        let options = OfflineOptions {
            flags: deciding.flags.clone(),
            without_config: in_force.without_config.clone(),
            guess_modes: in_force.source == Source::Assumed,
            modes: assumed.modes,
            keys: deciding.keys.clone(),
            scope: deciding.scope,
            session_seconds: deciding.session_seconds,
            modules: self.modules.clone(),
            ..OfflineOptions::default()
        };
        let offline = offline::load(&values, options).map_err(|error| {
            let place = places.get(error.place).cloned().flatten();
            LoadError::UnusableRule(match place {
                Some(place) => format!("{place}: {error}"),
                None => error.to_string(),
            })
        })?;
        let snapshot = Snapshot::clone(&offline.writer.rules().load());
        let names = Names::of(&offline, &places, &self.modules);
        let mut notes = self.skipped.clone();
        notes.extend(offline.assumed.iter().cloned());
        let mut unusable = names.unusable_rules(&offline.writer, &snapshot);
        for one in unusable
            .iter_mut()
            .filter(|one| one.kind == RuleKind::RoleGrant)
        {
            let mut placed = values.iter().zip(&places);
            one.is_in_files = placed.any(|(value, place)| {
                let name = value.pointer("/metadata/name").and_then(Value::as_str);
                place.is_some() && is_ours(value, "RoleGrant") && name == Some(&*one.name)
            });
        }
        notes.extend(unusable.iter().map(|one| one.sentence.clone()));
        notes.extend(names.doubtful(&offline.writer, &snapshot));
        notes.extend(names.unused(&offline));
        notes.extend(names.warnings(&offline.writer));
        let namespaces = offline.writer.builder().namespaces().cloned().collect();
        Ok(Loaded {
            web_identity: web_identity(&values, deciding, &snapshot),
            basis: basis(&in_force, &snapshot, sources.agents.is_some()),
            workloads: offline.workloads,
            namespaces,
            grants: grants(&values)?,
            notes,
            unusable,
            names,
            writer: offline.writer,
            snapshot,
            deciding: in_force.deciding,
            idle: in_force.idle,
        })
    }
}

/// Rules, pods, and the objects that rules are made of.
#[derive(Debug)]
pub struct Loaded {
    /// The rules.
    pub snapshot: Snapshot,
    /// The pods.
    pub workloads: Vec<Workload>,
    /// The AWS web identity roles of pods and service accounts, if admission validates them.
    pub web_identity: Vec<WebIdentity>,
    /// The namespaces.
    pub namespaces: Vec<Namespace>,
    /// The grants.
    pub grants: Vec<Grant>,
    /// Sentences about assumptions and rules without effect.
    pub notes: Vec<String>,
    /// The unusable rules, which the notes contain too.
    pub unusable: Vec<Unusable>,
    /// The rules' sources.
    pub basis: Basis,
    /// The flags that apply.
    pub deciding: Deciding,
    /// Flags of the command without effect, with the reason.
    pub idle: Vec<(String, &'static str)>,
    /// The files of policies.
    pub names: Names,
    /// The writer of the rules.
    pub writer: RuleStoreWriter,
}

impl Loaded {
    /// Returns the rules that admission uses.
    pub fn validation_rules(&self) -> ValidationRules<'_> {
        ValidationRules {
            rules: &self.snapshot.admission,
            config: &self.snapshot.config,
            grants: &self.snapshot.grants,
            keys: &self.deciding.keys,
            policies: Some(&*self.snapshot.policies),
            accounts: None,
        }
    }

    /// Returns whether an answer depends on the base ARN, which agents discover at runtime. It
    /// computes the answer with each base ARN that could make a difference to the objects, and all
    /// must equal the answer `without` one.
    ///
    /// # Errors
    /// Returns the error of `answer`.
    pub fn depends_on_base<'v, A: PartialEq, E>(
        &self,
        sources: &FlagSources,
        judged: impl IntoIterator<Item = &'v Value>,
        without: &A,
        answer: impl Fn(BaseArn) -> Result<A, E>,
    ) -> Result<bool, E> {
        if !self.lacks_base(sources) {
            return Ok(false);
        }
        let bases = candidates(judged);
        let mut depends = bases.len() > MAX_BASE_ARNS;
        for base in bases {
            depends = depends || answer(base)? != *without;
        }
        Ok(depends)
    }

    /// Returns whether agents use a base ARN that is unknown here.
    pub fn lacks_base(&self, sources: &FlagSources) -> bool {
        let is_missing = matches!(self.basis.source, Source::Missing);
        sources.agents.is_some() && self.snapshot.rules.base.is_none() && !is_missing
    }

    /// Returns whether admission evaluates policies.
    pub fn has_admission_policies(&self) -> bool {
        self.snapshot.config.modes[LayerId::Rego] != Mode::Off
            && self.snapshot.policies.has_admission_policies()
    }
}

/// Returns the rules' sources. `is_cluster`: they are in force in a cluster.
fn basis(in_force: &InForce, snapshot: &Snapshot, is_cluster: bool) -> Basis {
    let rules = &snapshot.in_force;
    let base = rules.base.as_ref();
    let mut unknown = in_force.unknown.clone();
    if is_cluster && in_force.source != Source::Missing {
        if base.is_none() {
            let why = "the base ARN that agents discover at runtime, which completes role names";
            unknown.push(why.into());
        }
        let why = "the agents' own roles, such as the nodes' roles, which agents discover at runtime and deny too";
        unknown.push(why.into());
    }
    Basis {
        source: in_force.source.clone(),
        flags: in_force.flags.clone(),
        base_role_arn: base.map(|base| base.as_str().to_owned()),
        layers: rules.modes.into(),
        unknown,
    }
}

fn web_identity(values: &[Value], deciding: &Deciding, snapshot: &Snapshot) -> Vec<WebIdentity> {
    let exempt = &snapshot.config.exempt_namespaces;
    let judged = values.iter().filter(|value| {
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        namespace.is_none_or(|namespace| !exempt.contains(namespace))
    });
    judged
        .filter_map(|value| {
            WebIdentity::of(
                value,
                &deciding.keys,
                &snapshot.config.web_identity_audiences,
            )
        })
        .collect()
}

fn grants(values: &[Value]) -> Result<Vec<Grant>, LoadError> {
    let grants = values.iter().filter(|value| is_ours(value, "RoleGrant"));
    grants
        .map(|value| {
            let grant = RoleGrant::deserialize(value).map_err(LoadError::Grant)?;
            Ok(Grant::from(&grant))
        })
        .collect()
}
