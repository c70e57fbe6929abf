//! Converts documents from any source into rules, pods and grants.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, bail};
use regex::Regex;
use rolegate_api::RoleGrant;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::Modes;
use rolegate_core::grant::Grant;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::workload::Workload;
use rolegate_kube::client::ClientError;
use rolegate_policy::basis::{Basis, Source};
use rolegate_policy::check::{foreign, namespace_of};
use rolegate_policy::overlay::{is_core, overlay};
use rolegate_policy::text::plain;
use rolegate_review::{ValidationRules, WebIdentity};
use rolegate_rules::offline::{self, Module, OfflineOptions};
use rolegate_rules::snapshot::Snapshot;
use rolegate_rules::store::RuleStoreWriter;
use serde::Deserialize;
use serde_json::Value;

use super::cluster::{Cluster, is_config, is_ours};
use super::files::{self, Contents, Modules, Selection};
use super::flags::{ReadFlags, RulesFrom};
use super::in_force::{ConfigNeed, FlagSources, InForce, PlacedConfig};
use super::names::{Names, RuleKind, Unusable};
use crate::deciding_flags::Deciding;

/// Maximum number of base ARNs to compare verdicts with if the base ARN is unknown.
const MAX_BASE_ARNS: usize = 64;

/// Objects with their sources.
#[derive(Debug, Default)]
pub(super) struct Objects {
    values: Vec<Value>,
    /// The file and line of each object that is from a file.
    places: Vec<Option<String>>,
    /// Rego modules in files.
    modules: Vec<Module>,
    /// A sentence for each skipped document.
    skipped: Vec<String>,
    /// The default namespace, if a cluster was read.
    namespace: Option<String>,
    /// The reason why a configuration is required.
    need: ConfigNeed,
}

impl Objects {
    /// Reads the rules and objects of files.
    pub(super) fn of_files(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let selection = Selection {
            modules: Modules::Policies,
            ..Selection::default()
        };
        files::read(paths, selection).map(Self::of_contents)
    }

    /// Returns the rules and objects of `contents`.
    pub(super) fn of_contents(contents: Contents) -> Self {
        let places = contents.manifests.iter().flat_map(|one| {
            let file = plain(&one.file);
            let documents = one.documents.iter();
            documents.map(move |document| Some(format!("{file}:{}", document.line())))
        });
        Self {
            places: places.collect(),
            values: files::objects(contents.manifests),
            modules: contents.modules,
            skipped: contents.skipped,
            ..Self::default()
        }
    }

    /// Returns the namespace to use if none is `given`: as in kubectl, that of the kubeconfig's
    /// context if a cluster was read.
    pub(super) fn namespace(&self, given: Option<&str>) -> String {
        given
            .or(self.namespace.as_deref())
            .unwrap_or("default")
            .to_owned()
    }

    /// Creates objects that are not from a file.
    pub(super) fn of_values(values: Vec<Value>) -> Self {
        Self {
            places: vec![None; values.len()],
            values,
            ..Self::default()
        }
    }

    /// Returns the objects with their files and lines.
    fn placed(&self) -> impl Iterator<Item = (&Value, &Option<String>)> + Clone {
        self.values.iter().zip(&self.places)
    }

    /// Returns the objects.
    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    /// Returns whether there are Rego modules, or ConfigMaps in a namespace of policies.
    pub(super) fn has_policies(&self, holds_policies: impl Fn(&str) -> bool) -> bool {
        let is_policy = |value: &Value| {
            let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
            is_core(value, "ConfigMap") && namespace.is_some_and(&holds_policies)
        };
        !self.modules.is_empty() || self.values.iter().any(is_policy)
    }

    /// Adds an object that is not from a file.
    pub(super) fn push(&mut self, value: Value) {
        self.push_of(value, None);
    }

    /// Adds an object with its file and line.
    pub(super) fn push_of(&mut self, value: Value, place: Option<String>) {
        self.values.push(value);
        self.places.push(place);
    }

    /// Removes and returns the first object that matches.
    pub(super) fn take(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let place = self.values.iter().position(wanted)?;
        self.places.remove(place);
        Some(self.values.remove(place))
    }

    /// Removes pods and service accounts of other namespaces.
    fn keep_users(&mut self, namespace: &str) {
        let is_kept = |value: &Value| {
            let is_user = is_core(value, "Pod") || is_core(value, "ServiceAccount");
            !is_user || namespace_of(value, "default") == namespace
        };
        let (values, places) = (
            std::mem::take(&mut self.values),
            std::mem::take(&mut self.places),
        );
        let all = values.into_iter().zip(places);
        (self.values, self.places) = all.filter(|(value, _)| is_kept(value)).unzip();
    }

    /// Returns these objects overlaid with those of a change, see [`overlay`].
    pub(super) fn overlaid(&self, change: &Self, replace: bool) -> Self {
        let (values, places) = overlay(self.placed(), change.placed(), replace);
        // A module of the change replaces that of the same file.
        let kept = self.modules.iter().filter(|module| {
            let mut others = change.modules.iter();
            !replace && others.all(|other| other.file != module.file)
        });
        Self {
            modules: kept.chain(&change.modules).cloned().collect(),
            skipped: [&*self.skipped, &*change.skipped].concat(),
            places,
            values,
            namespace: self.namespace.clone(),
            need: match self.values.iter().any(is_config) {
                true => ConfigNeed::Removed,
                false => self.need,
            },
        }
    }

    /// Returns the rules and pods with the configuration in force.
    ///
    /// # Errors
    /// Returns [`UnusableRule`] with its file and line for a malformed object, or an error if the
    /// configuration in force is unknown.
    pub(super) fn load(&self, sources: &FlagSources) -> anyhow::Result<Loaded> {
        self.load_as(sources, &Assumed::default())
    }

    /// Returns the rules and pods with the configuration in force, with parts of it assumed.
    pub(super) fn load_as(
        &self,
        sources: &FlagSources,
        assumed: &Assumed,
    ) -> anyhow::Result<Loaded> {
        let config = self.placed().find(|(value, _)| is_config(value));
        let config = config.map(|(object, place)| PlacedConfig {
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
            UnusableRule(match place {
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
        let foreign = values.iter().zip(&places).filter_map(|(value, place)| {
            let place = place.as_deref().unwrap_or("the cluster");
            foreign(value).map(|why| format!("{place}: {why}"))
        });
        notes.extend(foreign);
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

/// Assumptions about the rules that replace the configuration in force.
#[derive(Debug, Clone, Default)]
pub(super) struct Assumed {
    /// The base ARN, if it is unknown.
    pub(super) base: Option<BaseArn>,
    /// The modes of the layers.
    pub(super) modes: Option<Modes>,
    /// The rules of the cluster's admission webhook. It completes role names by the `baseRoleArn` of
    /// the RolegateConfig alone: it runs on no particular node, and does not have the agents' flags.
    pub(super) is_webhook: bool,
}

impl Assumed {
    /// Assumes a base ARN only.
    pub(super) fn base(base: BaseArn) -> Self {
        Self {
            base: Some(base),
            ..Self::default()
        }
    }
}

/// A malformed rule, with its file and line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UnusableRule(String);

/// The current rules and their users, and the sources of the flags that apply to them.
pub(super) struct Current {
    /// The objects.
    pub(super) objects: Objects,
    /// The sources of flags.
    pub(super) sources: FlagSources,
    /// The cluster, if one was read.
    pub(super) cluster: Option<Cluster>,
}

impl Current {
    /// Returns the rules of the cluster overlaid with objects of files.
    ///
    /// # Errors
    /// Returns an error for a cluster or file that cannot be read.
    pub(super) async fn laid_over(read: &ReadFlags, from: &RulesFrom) -> anyhow::Result<Self> {
        let files = Some(&*from.rules).filter(|files| !files.is_empty());
        let change = files.map(Objects::of_files).transpose()?;
        let cluster = match from.offline {
            true => None,
            false => match Cluster::connect(&read.reading).await {
                Ok(cluster) => Some(cluster),
                Err(error) if change.is_some() && is_nowhere(&error) => None,
                Err(error) => return Err(error),
            },
        };
        let Some(cluster) = cluster else {
            return Self::of_objects(read, change.unwrap_or_default());
        };
        let change = change.unwrap_or_default();
        let mut current = Self::of_cluster(read, cluster, &change, false).await?;
        current.objects = current.objects.overlaid(&change, false);
        Ok(current)
    }

    /// Reads the files if there are paths, and otherwise the rules of the cluster, including those
    /// that `change` needs.
    ///
    /// # Errors
    /// Returns an error for a cluster or file that cannot be read.
    pub(super) async fn read(
        read: &ReadFlags,
        paths: &[PathBuf],
        change: &Objects,
    ) -> anyhow::Result<Self> {
        if !paths.is_empty() {
            return Self::of_objects(read, Objects::of_files(paths)?);
        }
        Self::of_cluster(read, Cluster::connect(&read.reading).await?, change, true).await
    }

    async fn of_cluster(
        read: &ReadFlags,
        cluster: Cluster,
        change: &Objects,
        with_off_policies: bool,
    ) -> anyhow::Result<Self> {
        let sources = FlagSources {
            own: read.own()?,
            agents: Some(read.agents.read(&cluster).await),
            guesses: false,
        };
        let flags = sources.deciding()?.flags;
        let (values, has_kind) = cluster.rules(&flags, change, with_off_policies).await?;
        let objects = Objects {
            places: vec![None; values.len()],
            values,
            namespace: Some(cluster.namespace().to_owned()),
            need: ConfigNeed::of_cluster(has_kind),
            ..Objects::default()
        };
        Ok(Self {
            objects,
            sources,
            cluster: Some(cluster),
        })
    }

    /// Enables layers based on the existing rules if nothing sets their mode.
    pub(super) fn guessing(mut self) -> Self {
        self.sources.guesses = true;
        self
    }

    /// Adds the users of roles in one `namespace` or all if a cluster was read. Files contain them
    /// already; those of other namespaces are removed. With `whole_pods`, pods keep most of their
    /// fields.
    ///
    /// # Errors
    /// Returns an error for objects that cannot be read.
    pub(super) async fn add_users(
        &mut self,
        whole_pods: bool,
        namespace: Option<&str>,
    ) -> anyhow::Result<()> {
        if let Some(namespace) = namespace {
            self.objects.keep_users(namespace);
        }
        if let Some(cluster) = &self.cluster {
            let users = cluster.users(whole_pods, namespace).await?;
            self.objects.places.extend(vec![None; users.len()]);
            self.objects.values.extend(users);
        }
        Ok(())
    }

    /// Requires the base ARN as [`Loaded::demand_base`] does, for an answer about these objects.
    ///
    /// # Errors
    /// Returns an error that names the ways to set the base ARN.
    pub(super) fn demand_base<A: PartialEq>(
        &self,
        loaded: &Loaded,
        without: &A,
        answer: impl Fn(&Loaded) -> anyhow::Result<A>,
    ) -> anyhow::Result<()> {
        let Self {
            objects, sources, ..
        } = self;
        loaded.demand_base(sources, objects.values(), without, |base| {
            answer(&objects.load_as(sources, &Assumed::base(base))?)
        })
    }

    fn of_objects(read: &ReadFlags, objects: Objects) -> anyhow::Result<Self> {
        Ok(Self {
            objects,
            sources: FlagSources {
                own: read.own()?,
                agents: None,
                guesses: false,
            },
            cluster: None,
        })
    }
}

/// Returns whether no cluster is configured.
fn is_nowhere(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<ClientError>();
    matches!(error, Some(ClientError::Nowhere { .. }))
}

/// Rules, pods, and the objects that rules are made of.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The rules.
    pub(super) snapshot: Snapshot,
    /// The pods.
    pub(super) workloads: Vec<Workload>,
    /// The AWS web identity roles of pods and service accounts, if admission validates them.
    pub(super) web_identity: Vec<WebIdentity>,
    /// The namespaces.
    pub(super) namespaces: Vec<Namespace>,
    /// The grants.
    pub(super) grants: Vec<Grant>,
    /// Sentences about assumptions and rules without effect.
    pub(super) notes: Vec<String>,
    /// The unusable rules, which the notes contain too.
    pub(super) unusable: Vec<Unusable>,
    /// The rules' sources.
    pub(super) basis: Basis,
    /// The flags that apply.
    pub(super) deciding: Deciding,
    /// Flags of the command without effect, with the reason.
    pub(super) idle: Vec<(String, &'static str)>,
    /// The files of policies.
    pub(super) names: Names,
    /// The writer of the rules.
    pub(super) writer: RuleStoreWriter,
}

impl Loaded {
    /// Returns the rules that admission uses.
    pub(super) fn gate(&self) -> ValidationRules<'_> {
        ValidationRules {
            rules: &self.snapshot.admission,
            config: &self.snapshot.config,
            grants: &self.snapshot.grants,
            keys: &self.deciding.keys,
            policies: Some(&*self.snapshot.policies),
        }
    }

    /// Returns an error if an answer depends on the base ARN, which agents discover at runtime. It
    /// computes the answer with each base ARN that could make a difference to the objects, and all
    /// must equal the answer `without` one.
    ///
    /// # Errors
    /// Returns an error that names the ways to set the base ARN.
    pub(super) fn demand_base<'v, A: PartialEq>(
        &self,
        sources: &FlagSources,
        judged: impl IntoIterator<Item = &'v Value>,
        without: &A,
        answer: impl Fn(BaseArn) -> anyhow::Result<A>,
    ) -> anyhow::Result<()> {
        if !self.lacks_base(sources) {
            return Ok(());
        }
        let bases = bases(judged);
        let mut depends = bases.len() > MAX_BASE_ARNS;
        for base in bases {
            depends = depends || answer(base)? != *without;
        }
        if depends {
            bail!(
                "the answer depends on the base ARN that completes role names, which is unknown \
                 here ({}): agents discover it at runtime. Set it with --base-role-arn, or as \
                 baseRoleArn of a RolegateConfig",
                self.basis.source
            );
        }
        Ok(())
    }

    /// Returns whether agents use a base ARN that is unknown here.
    pub(super) fn lacks_base(&self, sources: &FlagSources) -> bool {
        let is_missing = matches!(self.basis.source, Source::Missing);
        sources.agents.is_some() && self.snapshot.rules.base.is_none() && !is_missing
    }

    /// Whether policies are asked at a gate.
    pub(super) fn has_admission_policies(&self) -> bool {
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

/// Returns the base ARNs that may change a decision about the objects: every prefix of each role's
/// ARN, and one of another account.
fn bases<'v>(values: impl IntoIterator<Item = &'v Value>) -> Vec<BaseArn> {
    let mut texts = BTreeSet::new();
    if let Ok(pattern) = Regex::new("arn:[a-z-]+:iam::[0-9]{12}:role/[^\\s\"',\\]]*") {
        for value in values {
            collect(value, &pattern, &mut texts);
        }
    }
    let found = texts.iter().filter_map(|text| BaseArn::parse(text).ok());
    any_base().into_iter().chain(found).collect()
}

/// A base ARN of an account that nobody has, by which role names are merely complete.
pub(super) fn any_base() -> Option<BaseArn> {
    BaseArn::of_account("aws", "000000000000").ok()
}

fn collect(value: &Value, pattern: &Regex, texts: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            for arn in pattern.find_iter(text) {
                let arn = arn.as_str();
                let ends = arn.match_indices('/').map(|(place, _)| place + 1);
                texts.extend(ends.filter_map(|end| arn.get(..end)).map(str::to_owned));
            }
        }
        Value::Array(all) => all.iter().for_each(|one| collect(one, pattern, texts)),
        Value::Object(fields) => fields.values().for_each(|one| collect(one, pattern, texts)),
        _ => {}
    }
}

fn web_identity(values: &[Value], deciding: &Deciding, snapshot: &Snapshot) -> Vec<WebIdentity> {
    let spared = &snapshot.config.exempt_namespaces;
    let judged = values.iter().filter(|value| {
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        namespace.is_none_or(|namespace| !spared.contains(namespace))
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

fn grants(values: &[Value]) -> anyhow::Result<Vec<Grant>> {
    let grants = values.iter().filter(|value| is_ours(value, "RoleGrant"));
    grants
        .map(|value| {
            let grant = RoleGrant::deserialize(value).context("cannot parse a RoleGrant")?;
            Ok(Grant::from(&grant))
        })
        .collect()
}
