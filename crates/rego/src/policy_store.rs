//! The policy store: it loads ConfigMaps and replicated objects, keeps valid versions, reports
//! errors, and creates immutable snapshots, [`Policies`].
//!
//! # One OPA, evaluated by ConfigMap
//! With kube-mgmt, all modules are in one OPA: rules of one ConfigMap are visible to all others, in
//! the same package and by import, and `deny` is the union of all. Here the `deny` rule of each
//! ConfigMap is compiled separately, with the modules of other ConfigMaps that it depends on as
//! libraries, without their `deny`. Helpers are thus shared as in OPA, each message belongs to one
//! ConfigMap, and no policy uses the time of another.
//!
//! A ConfigMap that conflicts with others (a rule with two kinds, an undefined function, a cycle of
//! rules) is rejected when it is loaded, and those in use stay in use. OPA rejects it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::analysis::{Path, Shape};
use crate::data::{self, DataTree};
use crate::error::LoadError;
use crate::evaluate::{self, Part, Program};
use crate::input;
use crate::link::{Graph, is_deny};
use crate::meter::start_clock;
use crate::policies::{Policies, Policy, UnavailablePolicy};
use crate::source::{EnforcementPoints, Kind, PolicySource, Replicated, Settings};
use crate::status::PolicyStatus;
use crate::syntax::{ParsedModule, Syntax};

/// A version of a ConfigMap that parses.
#[derive(Debug)]
struct Version {
    points: EnforcementPoints,
    modules: Vec<(String, Arc<ParsedModule>)>,
}

#[derive(Debug)]
struct Slot {
    source: PolicySource,
    wanted: Result<Arc<Version>, LoadError>,
}

/// A compiled ConfigMap, without and with data.
#[derive(Debug, Clone)]
struct Built {
    parts: Vec<Part>,
    engine: regorus::Engine,
    denies: bool,
    reads_time: bool,
    kinds: BTreeSet<&'static str>,
    reads: BTreeSet<Path>,
    program: Option<Arc<Program>>,
}

type Versions = BTreeMap<Arc<str>, Arc<Version>>;
type Faults = BTreeMap<Arc<str>, LoadError>;

/// The owner of all policies and data, with a single writer.
#[derive(Debug)]
pub struct PolicyStore {
    settings: Settings,
    slots: BTreeMap<Arc<str>, Slot>,
    running: Versions,
    built: BTreeMap<Arc<str>, Built>,
    faults: Faults,
    data: DataTree,
    data_maps: BTreeMap<Arc<str>, Result<(), LoadError>>,
}

impl PolicyStore {
    /// Creates an empty store.
    pub fn new(settings: Settings) -> Self {
        start_clock();
        Self {
            data: DataTree::new(settings.limits.data_bytes),
            settings,
            slots: BTreeMap::new(),
            running: BTreeMap::new(),
            built: BTreeMap::new(),
            faults: BTreeMap::new(),
            data_maps: BTreeMap::new(),
        }
    }

    /// Loads a new or changed ConfigMap.
    pub fn apply(&mut self, source: PolicySource) {
        match source.kind {
            Kind::Data => self.apply_data(&source),
            Kind::Policy => {
                if self.read(source) {
                    self.settle();
                }
            }
        }
    }

    /// Removes a ConfigMap.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        let id = data::id(namespace, name);
        match kind {
            Kind::Data => {
                self.data_maps.remove(&id);
                self.data.delete(namespace, name);
            }
            Kind::Policy => {
                if self.slots.remove(&id).is_some() {
                    self.settle();
                }
            }
        }
    }

    /// Replaces all ConfigMaps of a kind.
    pub fn replace_all(&mut self, kind: Kind, sources: impl IntoIterator<Item = PolicySource>) {
        let sources: BTreeMap<Arc<str>, PolicySource> = sources
            .into_iter()
            .filter(|source| source.kind == kind)
            .map(|source| (source.id(), source))
            .collect();
        match kind {
            Kind::Data => {
                let gone: Vec<Arc<str>> = self
                    .data_maps
                    .keys()
                    .filter(|id| !sources.contains_key(*id))
                    .cloned()
                    .collect();
                for id in gone {
                    self.data_maps.remove(&id);
                    if let Some((namespace, name)) = id.split_once('/') {
                        self.data.delete(namespace, name);
                    }
                }
                for source in sources.values() {
                    self.apply_data(source);
                }
            }
            Kind::Policy => {
                self.slots.retain(|id, _| sources.contains_key(id));
                for source in sources.into_values() {
                    self.read(source);
                }
                self.settle();
            }
        }
    }

    /// Loads a new or changed replicated object.
    pub fn replicate(&mut self, object: &Replicated) {
        self.data.replicate(object);
    }

    /// Records a replicated object of this size in bytes that is omitted for lack of space.
    pub fn leave_out(&mut self, resource: &str, namespace: Option<&str>, name: &str, bytes: usize) {
        self.data.leave_out(resource, namespace, name, bytes);
    }

    /// Returns the resources whose omitted objects would all fit now, so they must be replicated
    /// again.
    pub fn fit_again(&self) -> BTreeSet<String> {
        self.data.fit_again()
    }

    /// Removes a replicated object.
    pub fn forget(&mut self, resource: &str, namespace: Option<&str>, name: &str) {
        self.data.forget(resource, namespace, name);
    }

    /// Replaces all objects of a replicated resource (its plural).
    pub fn replicate_all<'a>(
        &mut self,
        resource: &str,
        objects: impl IntoIterator<Item = &'a Replicated>,
    ) {
        self.data.replicate_all(resource, objects);
    }

    /// Changes the settings. New limits apply to what is loaded afterwards.
    pub fn configure(&mut self, settings: Settings) {
        if self.settings != settings {
            self.settings = settings;
            self.built.clear();
            self.settle();
        }
    }

    /// Returns true if a policy ConfigMap exists, whether valid or not.
    pub fn has_policy(&self, namespace: &str, name: &str) -> bool {
        self.slots.contains_key(&data::id(namespace, name))
    }

    /// Returns the status of each ConfigMap, by `namespace/name`.
    pub fn statuses(&self) -> BTreeMap<Arc<str>, PolicyStatus> {
        let mut statuses = BTreeMap::new();
        for (id, result) in &self.data_maps {
            let status = match result {
                Ok(()) => PolicyStatus::Ok {
                    syntax: BTreeMap::new(),
                    reads_time: false,
                    warnings: Vec::new(),
                },
                Err(error) => PolicyStatus::Error {
                    error: error.clone(),
                    keeps_last_good: self.data.has(id),
                },
            };
            statuses.insert(id.clone(), status);
        }
        for id in self.slots.keys() {
            let status = match (self.faults.get(id), self.running.get(id)) {
                (None, Some(version)) => PolicyStatus::Ok {
                    syntax: version.syntax(),
                    reads_time: self.built.get(id).is_some_and(|built| built.reads_time),
                    warnings: version.warnings(),
                },
                (Some(error), running) => PolicyStatus::Error {
                    error: error.clone(),
                    keeps_last_good: running.is_some(),
                },
                (None, None) => continue,
            };
            statuses.insert(id.clone(), status);
        }
        statuses
    }

    /// Returns the existing policies that have no valid version, with the reason. While there are
    /// any, admission denies, and so do agents if the policy is enforced there.
    pub fn never_loaded(&self) -> BTreeMap<Arc<str>, String> {
        self.slots
            .keys()
            .filter(|id| !self.running.contains_key(*id))
            .map(|id| {
                let why = self
                    .faults
                    .get(id)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                (id.clone(), why)
            })
            .collect()
    }

    /// Returns the required policies and data that are missing or have no valid version. While
    /// there are any, admission and agents deny.
    pub fn missing(&self) -> Vec<Arc<str>> {
        self.settings
            .required
            .iter()
            .map(|required| data::id(&required.namespace, &required.name))
            .filter(|id| !self.running.contains_key(id) && !self.data.has(id))
            .collect()
    }

    /// Returns the modules of each ConfigMap in use.
    pub(crate) fn modules_in_use(
        &self,
    ) -> impl Iterator<Item = (&Arc<str>, Vec<&Arc<ParsedModule>>)> {
        let running = self.running.iter();
        running.map(|(id, version)| (id, version.parts().collect()))
    }

    /// Returns true if the `deny` of another ConfigMap uses rules of this one.
    pub(crate) fn is_library(&self, id: &Arc<str>) -> bool {
        let mut parts = self
            .built
            .values()
            .filter(|built| built.denies)
            .flat_map(|built| &built.parts);
        parts.any(|part| part.is_library && part.module.policy == *id)
    }

    /// Returns all data, regardless of which policies read it.
    pub(crate) fn all_data(&self) -> regorus::Value {
        self.data.project(&BTreeSet::from([Path::new()]))
    }

    /// Returns the limits in effect.
    pub(crate) fn limits(&self) -> &crate::Limits {
        &self.settings.limits
    }

    /// Returns a snapshot of the current policies.
    pub fn snapshot(&mut self) -> Arc<Policies> {
        let changed = self.data.take_changed();
        let mut unusable = BTreeMap::new();
        for (id, built) in self.built.iter_mut().filter(|(_, built)| built.denies) {
            if built.program.is_some() && !data::touches(&changed, &built.reads) {
                continue;
            }
            match evaluate::with_data(&built.engine, self.data.project(&built.reads)) {
                Ok(engine) => {
                    built.program = Some(Arc::new(Program {
                        engine,
                        limits: self.settings.limits.clone(),
                        reads_time: built.reads_time,
                        reads: built.reads.clone(),
                        kinds: built.kinds.clone(),
                        coverage: None,
                    }));
                }
                // Retried for the next snapshot; until then the policy is unavailable.
                Err(error) => {
                    built.program = None;
                    unusable.insert(id.clone(), crate::error::one_line("its data", &error));
                }
            }
        }
        let faults = self.data_faults();
        let policies = self
            .running
            .iter()
            .filter_map(|(id, version)| {
                let program = self.built.get(id)?.program.clone()?;
                let mut faults = faults.iter();
                let fault = faults.find(|(path, _)| data::are_related(path, &program.reads));
                Some(Policy {
                    id: id.clone(),
                    points: version.points,
                    fault: fault.map(|(_, why)| why.clone()),
                    program,
                })
            })
            .collect();
        Arc::new(Policies {
            policies,
            lacking: self.lacking(unusable),
            wrap_pods: self.settings.wrap_pods,
            question_time: self.settings.limits.question_time,
        })
    }

    /// Returns the paths where data is incomplete, with the reason: objects that could not be
    /// loaded, and data ConfigMaps without a valid version.
    fn data_faults(&self) -> BTreeMap<Path, String> {
        let mut faults = self.data.faults();
        for (id, result) in &self.data_maps {
            if let (Err(error), Some((namespace, name)), false) =
                (result, id.split_once('/'), self.data.has(id))
                && namespace != data::REPLICATED
            {
                let why = format!("the data is invalid, so every request is denied: {error}");
                faults.insert(vec![namespace.into(), name.into()], why);
            }
        }
        faults
    }

    fn lacking(&self, unusable: BTreeMap<Arc<str>, String>) -> Vec<UnavailablePolicy> {
        let missing: BTreeSet<Arc<str>> = self.missing().into_iter().collect();
        let mut lacking: BTreeMap<Arc<str>, UnavailablePolicy> = BTreeMap::new();
        for (id, why) in self.never_loaded().into_iter().chain(unusable) {
            let points = self
                .slots
                .get(&id)
                .map_or_else(EnforcementPoints::default, |slot| slot.source.points);
            let why = format!("policy {id} is not in use, so every request is denied: {why}");
            lacking.insert(id.clone(), UnavailablePolicy { id, points, why });
        }
        for id in missing {
            let why = format!("the required policy {id} is missing, so every request is denied");
            let lacking = lacking.entry(id.clone()).or_insert(UnavailablePolicy {
                id,
                points: EnforcementPoints::default(),
                why,
            });
            lacking.points = EnforcementPoints {
                admission: true,
                agent: true,
            };
        }
        lacking.into_values().collect()
    }

    fn apply_data(&mut self, source: &PolicySource) {
        let result = self.data.apply(source);
        self.data_maps.insert(source.id(), result);
    }

    /// Parses a policy ConfigMap. Returns true if it differs from the previous version.
    fn read(&mut self, source: PolicySource) -> bool {
        let id = source.id();
        if self
            .slots
            .get(&id)
            .is_some_and(|slot| slot.source == source)
        {
            return false;
        }
        let wanted = source
            .entries
            .iter()
            .map(|(entry, text)| {
                let module = ParsedModule::read(&id, entry, text, &self.settings.limits)?;
                Ok((entry.clone(), Arc::new(module)))
            })
            .collect::<Result<Vec<_>, LoadError>>()
            .map(|modules| {
                Arc::new(Version {
                    points: source.points,
                    modules,
                })
            });
        self.slots.insert(id, Slot { source, wanted });
        true
    }

    /// Puts the new versions that are consistent into use.
    fn settle(&mut self) {
        self.faults.clear();
        self.running.retain(|id, _| self.slots.contains_key(id));
        // A policy in use may have lost a dependency.
        while let Err(faults) = self.check(&self.running.clone()) {
            self.running.retain(|id, _| !faults.contains_key(id));
            self.faults.extend(faults);
        }
        let mut pending = Versions::new();
        for (id, slot) in &self.slots {
            match &slot.wanted {
                Err(error) => {
                    self.faults.insert(id.clone(), error.clone());
                }
                Ok(wanted)
                    if self
                        .running
                        .get(id)
                        .is_some_and(|runs| Arc::ptr_eq(runs, wanted)) => {}
                Ok(wanted) => {
                    pending.insert(id.clone(), wanted.clone());
                }
            }
        }
        if self.commit(&pending).is_ok() {
            return;
        }
        // Versions are tried one by one, repeatedly, since one may depend on a later one.
        loop {
            let before = pending.len();
            for (id, version) in pending.clone() {
                match self.commit(&Versions::from([(id.clone(), version)])) {
                    Ok(()) => {
                        pending.remove(&id);
                    }
                    Err(mut faults) => {
                        let other = faults.keys().next().cloned();
                        let own = faults.remove(&id).or_else(|| {
                            let (other, fault) =
                                other.and_then(|other| faults.remove_entry(&other))?;
                            Some(LoadError::Compile(format!(
                                "{id} would break {other}: {fault}"
                            )))
                        });
                        self.faults.extend(own.map(|fault| (id, fault)));
                    }
                }
            }
            if pending.is_empty() || pending.len() == before {
                return;
            }
        }
    }

    /// Puts versions into use in addition to the current ones, if all of them are consistent.
    fn commit(&mut self, versions: &Versions) -> Result<(), Faults> {
        if versions.is_empty() {
            return Ok(());
        }
        let mut candidate = self.running.clone();
        candidate.extend(
            versions
                .iter()
                .map(|(id, version)| (id.clone(), version.clone())),
        );
        self.check(&candidate)?;
        self.running = candidate;
        self.faults.retain(|id, _| !versions.contains_key(id));
        Ok(())
    }

    /// Links and compiles versions together; unchanged ones keep their compiled form.
    fn check(&mut self, versions: &Versions) -> Result<(), Faults> {
        let count: usize = versions.values().map(|version| version.modules.len()).sum();
        if count > self.settings.limits.modules {
            let what = format!(
                "{count} modules, more than {}",
                self.settings.limits.modules
            );
            let fault = LoadError::Compile(what);
            return Err(versions
                .keys()
                .map(|id| (id.clone(), fault.clone()))
                .collect());
        }
        let graph = Graph::new(versions.values().flat_map(|version| version.parts()));
        let mut faults = graph.faults();
        let mut built = BTreeMap::new();
        for (id, version) in versions {
            if faults.contains_key(id) {
                continue;
            }
            match self.build(id, version, &graph) {
                Ok(policy) => {
                    built.insert(id.clone(), policy);
                }
                Err(fault) => {
                    faults.insert(id.clone(), fault);
                }
            }
        }
        if faults.is_empty() {
            self.built = built;
            Ok(())
        } else {
            Err(faults)
        }
    }

    fn build(
        &self,
        id: &Arc<str>,
        version: &Version,
        graph: &Graph<'_>,
    ) -> Result<Built, LoadError> {
        let closure = graph.closure(id);
        let mut denies = false;
        for module in version.parts() {
            for rule in module.facts.rules.iter().filter(|rule| is_deny(&rule.path)) {
                let odd = rule.path.len() > crate::analysis::ADMISSION.len() + 1
                    || matches!(rule.shape, Shape::Function(_));
                if odd {
                    return Err(LoadError::Compile(format!(
                        "{}, line {}: deny must be a set of messages: deny[msg] {{ … }} or deny contains msg if {{ … }}",
                        module.place, rule.line
                    )));
                }
                denies = true;
            }
        }
        if version.points.agent {
            for (place, read) in &closure.inputs {
                if let Some(what) = input::undocumented(read, self.settings.wrap_pods) {
                    return Err(LoadError::Compile(format!(
                        "{place}, line {}: {what}",
                        read.line
                    )));
                }
            }
        }
        let own = version.parts().map(|module| Part {
            module: module.clone(),
            is_library: false,
        });
        let libraries = closure.libraries.values().map(|module| Part {
            module: (*module).clone(),
            is_library: true,
        });
        let parts: Vec<Part> = own.chain(libraries).collect();
        let same = |one: &Part, other: &Part| {
            Arc::ptr_eq(&one.module, &other.module) && one.is_library == other.is_library
        };
        if let Some(before) = self.built.get(id).filter(|before| {
            before.parts.len() == parts.len()
                && before
                    .parts
                    .iter()
                    .zip(&parts)
                    .all(|(one, other)| same(one, other))
        }) {
            return Ok(before.clone());
        }
        Ok(Built {
            engine: evaluate::compile(&parts, &self.settings.limits)?,
            parts,
            denies,
            reads_time: closure.reads_time,
            kinds: closure.kinds,
            reads: closure.data,
            program: None,
        })
    }
}

impl Version {
    fn parts(&self) -> impl Iterator<Item = &Arc<ParsedModule>> {
        self.modules.iter().map(|(_, module)| module)
    }

    fn warnings(&self) -> Vec<String> {
        let modules = self.modules.iter();
        let warnings = modules.flat_map(|(_, module)| &module.warnings);
        warnings.cloned().collect()
    }

    fn syntax(&self) -> BTreeMap<String, Syntax> {
        self.modules
            .iter()
            .map(|(entry, module)| (entry.clone(), module.syntax))
            .collect()
    }
}
