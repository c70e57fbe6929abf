//! From documents to rules, pods and grants, wherever the documents come from.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use rolegate_admission::{GateRules, WebIdentity};
use rolegate_core::grant::Grant;
use rolegate_core::layer::Mode;
use rolegate_core::namespace::Namespace;
use rolegate_core::rulebook::ClusterConfig;
use rolegate_core::workload::Workload;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_kube::crd::{GROUP, RoleGrant};
use rolegate_policy::check::foreign;
use rolegate_policy::overlay::overlay;
use rolegate_policy::text::plain;
use rolegate_rules::keeper::Keeper;
use rolegate_rules::offline::{self, Module, OfflineOptions};
use rolegate_rules::snapshot::Snapshot;
use serde::Deserialize;
use serde_json::Value;

use super::cluster::Cluster;
use super::files::{self, Contents, Modules, Selection};
use super::flags::Reading;
use super::names::Names;

/// Objects, and where each is from.
#[derive(Debug, Default)]
pub(super) struct Objects {
    values: Vec<Value>,
    /// File and line of each that is from a file.
    places: Vec<Option<String>>,
    /// Modules of Rego in files.
    modules: Vec<Module>,
    /// Documents that were passed over, in sentences.
    passed_over: Vec<String>,
    /// Whether a cluster was asked: then nothing is guessed.
    is_cluster: bool,
    /// The namespace that is meant where none is named, where a cluster was asked.
    namespace: Option<String>,
    /// Whether there has to be a configuration: its kind is installed, or it was there before.
    needs_config: bool,
}

impl Objects {
    /// The rules and objects of files.
    pub(super) fn of_files(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let selection = Selection {
            modules: Modules::Policies,
            ..Selection::default()
        };
        files::read(paths, selection).map(Self::of_contents)
    }

    /// The rules and objects of what was read.
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
            passed_over: contents.passed_over,
            ..Self::default()
        }
    }

    /// From files where there are paths, and otherwise the rules of the cluster.
    pub(super) async fn from(
        paths: &[PathBuf],
        options: &ClientOptions,
        reading: &Reading,
    ) -> anyhow::Result<Self> {
        if !paths.is_empty() {
            return Self::of_files(paths);
        }
        let cluster = Cluster::connect(options).await?;
        let (values, needs_config) = cluster.rules(&reading.flags).await?;
        Ok(Self {
            places: vec![None; values.len()],
            values,
            is_cluster: true,
            namespace: Some(cluster.namespace().to_owned()),
            needs_config,
            ..Self::default()
        })
    }

    /// Adds what uses roles, where these are the rules of a cluster: files have it already. With
    /// `whole_pods` little is left out of pods.
    pub(super) async fn with_users(
        mut self,
        options: &ClientOptions,
        whole_pods: bool,
    ) -> anyhow::Result<Self> {
        if self.is_cluster {
            let users = Cluster::connect(options).await?.users(whole_pods).await?;
            self.places.extend(vec![None; users.len()]);
            self.values.extend(users);
        }
        Ok(self)
    }

    /// The namespace that is meant where none is `given`: that of the kubeconfig's context where a
    /// cluster was asked, as for kubectl.
    pub(super) fn namespace(&self, given: Option<&str>) -> String {
        given
            .or(self.namespace.as_deref())
            .unwrap_or("default")
            .to_owned()
    }

    /// More objects, of no file.
    pub(super) fn of_values(values: Vec<Value>) -> Self {
        Self {
            places: vec![None; values.len()],
            values,
            ..Self::default()
        }
    }

    /// The objects with their places.
    fn placed(&self) -> impl Iterator<Item = (&Value, &Option<String>)> + Clone {
        self.values.iter().zip(&self.places)
    }

    /// The objects.
    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    /// One more object, of nobody's file.
    pub(super) fn push(&mut self, value: Value) {
        self.values.push(value);
        self.places.push(None);
    }

    /// Takes the first object out that is wanted.
    pub(super) fn take(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let place = self.values.iter().position(wanted)?;
        self.places.remove(place);
        Some(self.values.remove(place))
    }

    /// These objects with those of a change laid over them, see [`overlay`].
    pub(super) fn overlaid(&self, change: &Self, replace: bool) -> Self {
        let (values, places) = overlay(self.placed(), change.placed(), replace);
        // A module of the change is another version of the one of the same file.
        let kept = self.modules.iter().filter(|module| {
            let mut others = change.modules.iter();
            !replace && others.all(|other| other.file != module.file)
        });
        Self {
            modules: kept.chain(&change.modules).cloned().collect(),
            passed_over: [&*self.passed_over, &*change.passed_over].concat(),
            places,
            values,
            is_cluster: self.is_cluster,
            namespace: self.namespace.clone(),
            needs_config: self.needs_config || self.values.iter().any(is_config),
        }
    }

    /// The rules and pods.
    ///
    /// # Errors
    /// An object that is malformed, with its place.
    pub(super) fn load(&self, reading: &Reading) -> anyhow::Result<Loaded> {
        let mut values = self.values.clone();
        let mut places = self.places.clone();
        if reading.cluster_config == ConfigUse::Off {
            let mut kept = self.values.iter().map(|value| !is_config(value));
            places.retain(|_| kept.next().unwrap_or(true));
            values.retain(|value| !is_config(value));
        }
        let options = OfflineOptions {
            flags: reading.flags.clone(),
            without_config: match reading.cluster_config {
                ConfigUse::Auto if self.needs_config => ClusterConfig::Missing,
                ConfigUse::Required => ClusterConfig::Missing,
                ConfigUse::Auto | ConfigUse::Off => ClusterConfig::NotUsed,
            },
            // What a cluster has without a configuration counts as flags say, whatever there is.
            guess_modes: !self.is_cluster && !reading.say_modes,
            keys: reading.keys.clone(),
            scope: reading.scope,
            session_seconds: reading.session_seconds,
            modules: self.modules.clone(),
            ..OfflineOptions::default()
        };
        let offline = offline::load(&values, options).map_err(|error| {
            let place = places.get(error.place).cloned().flatten();
            match place {
                Some(place) => anyhow!("{place}: {error}"),
                None => anyhow!("{error}"),
            }
        })?;
        let snapshot = Snapshot::clone(&offline.keeper.rules().load());
        let names = Names::of(&offline, &places, &self.modules);
        let mut notes = self.passed_over.clone();
        notes.extend(offline.assumed.iter().cloned());
        notes.extend(names.broken(&offline.keeper, &snapshot));
        notes.extend(names.unused(&offline));
        notes.extend(names.warnings(&offline.keeper));
        let foreign = values.iter().zip(&places).filter_map(|(value, place)| {
            let place = place.as_deref().unwrap_or("the cluster");
            foreign(value).map(|why| format!("{place}: {why}"))
        });
        notes.extend(foreign);
        let namespaces = offline.keeper.book().namespaces().cloned().collect();
        let web_identity = web_identity(&values, reading, &snapshot);
        Ok(Loaded {
            web_identity,
            snapshot,
            workloads: offline.workloads,
            namespaces,
            grants: grants(&values)?,
            notes,
            names,
            keeper: offline.keeper,
        })
    }
}

/// Rules, pods and what rules are made of.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The rules.
    pub(super) snapshot: Snapshot,
    /// The pods.
    pub(super) workloads: Vec<Workload>,
    /// What pods and service accounts ask of AWS itself, where the gate judges it.
    pub(super) web_identity: Vec<WebIdentity>,
    /// The namespaces, raw.
    pub(super) namespaces: Vec<Namespace>,
    /// The grants, raw.
    pub(super) grants: Vec<Grant>,
    /// What was taken for granted, and which rules count for nothing, in sentences.
    pub(super) notes: Vec<String>,
    /// The files that policies are from.
    pub(super) names: Names,
    /// The owner of the rules.
    pub(super) keeper: Keeper,
}

impl Loaded {
    /// What a gate judges by.
    pub(super) fn gate<'a>(&'a self, reading: &'a Reading) -> GateRules<'a> {
        GateRules {
            rules: &self.snapshot.gate,
            config: &self.snapshot.config,
            grants: &self.snapshot.grants,
            keys: &reading.keys,
            policies: Some(&*self.snapshot.policies),
        }
    }

    /// Whether policies are asked at a gate.
    pub(super) fn asks_at_gate(&self) -> bool {
        self.snapshot.config.modes.rego != Mode::Off && self.snapshot.policies.asks_at_gate()
    }
}

fn is_config(value: &Value) -> bool {
    is_ours(value, "RolegateConfig")
}

fn is_ours(value: &Value, kind: &str) -> bool {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
    text("kind") == kind && text("apiVersion").split('/').next() == Some(GROUP)
}

fn web_identity(values: &[Value], reading: &Reading, snapshot: &Snapshot) -> Vec<WebIdentity> {
    let spared = &snapshot.config.spared_namespaces;
    let judged = values.iter().filter(|value| {
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        namespace.is_none_or(|namespace| !spared.contains(namespace))
    });
    judged
        .filter_map(|value| {
            WebIdentity::of(
                value,
                &reading.keys,
                &snapshot.config.web_identity_audiences,
            )
        })
        .collect()
}

fn grants(values: &[Value]) -> anyhow::Result<Vec<Grant>> {
    let grants = values.iter().filter(|value| is_ours(value, "RoleGrant"));
    grants
        .map(|value| {
            let grant = RoleGrant::deserialize(value).context("a RoleGrant cannot be read")?;
            Ok(Grant::from(&grant))
        })
        .collect()
}
