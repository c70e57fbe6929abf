//! The one writer of the rules: takes what sources report, publishes snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rolegate_core::config::{DATA_LABEL, RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::layer::{Layer, Mode};
use rolegate_core::rulebook::{Facts, RuleBook, RuleUpdate, Touched};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_kube::config_maps::ConfigMap;
use rolegate_kube::replicated::Replicated;
use rolegate_rego::{
    Kind, Limits, Points, Policies, PolicyBook, PolicySource, PolicyStatus, RegoLayer, Required,
    Settings, looks_like_rego,
};

use crate::in_force::RulesInForce;
use crate::rules::Rules;
use crate::snapshot::{Needs, PolicyCounts, Snapshot, Watch};

/// What a source says.
#[derive(Debug, Clone)]
pub enum Report {
    /// About the configuration, grants or namespaces.
    Rules(RuleUpdate),
    /// About the ConfigMaps of one namespace.
    ConfigMaps(Arc<str>, Change<ConfigMap>),
    /// About the objects of one kind.
    Replicated(ResourceKind, Change<Replicated>),
    /// That something is no longer followed: what was said about it may be out of date.
    Unfollowed(Watch),
}

/// Where policies are asked by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// At a gate, about objects.
    Gate,
    /// At a door, about pods.
    Door,
}

type MapName = (Arc<str>, Arc<str>);

/// Writes the rules.
#[derive(Debug)]
pub struct Keeper {
    book: RuleBook,
    point: Point,
    policies: PolicyBook,
    /// What the policies were last compiled by.
    rego: RegoConfig,
    config_maps: HashMap<MapName, ConfigMap>,
    /// ConfigMaps whose points cannot be read.
    misplaced: BTreeMap<MapName, String>,
    policy_counts: PolicyCounts,
    loaded_namespaces: HashSet<Arc<str>>,
    loaded_kinds: BTreeSet<ResourceKind>,
    rules: Rules,
}

impl Keeper {
    /// Rules that nothing is known of yet. `flags` count where the cluster has no configuration.
    pub fn new(flags: RuleConfig, point: Point, scope: SessionScope, session_seconds: u32) -> Self {
        let rego = flags.rego.clone();
        let mut keeper = Self {
            book: RuleBook::new(flags, scope, session_seconds),
            point,
            policies: PolicyBook::new(settings(&rego)),
            rego,
            config_maps: HashMap::new(),
            misplaced: BTreeMap::new(),
            policy_counts: PolicyCounts::default(),
            loaded_namespaces: HashSet::new(),
            loaded_kinds: BTreeSet::new(),
            rules: Rules::default(),
        };
        keeper.publish();
        keeper
    }

    /// The readers' handle.
    pub fn rules(&self) -> Rules {
        self.rules.clone()
    }

    /// What has not been seen yet, and must be before anything is decided.
    pub fn unseen(&self) -> Option<&'static str> {
        self.book.unseen()
    }

    /// What keeps the rules from counting.
    pub fn missing(&self) -> Option<Arc<str>> {
        self.book.missing().or_else(|| {
            let rego = self.book.config().modes.rego == Mode::Enforce;
            let missing = self.policies.missing();
            (rego && !missing.is_empty()).then(|| {
                let missing: Vec<_> = missing.iter().map(|name| &**name).collect();
                let missing = missing.join(", ");
                format!("policies are missing or cannot be read: {missing}").into()
            })
        })
    }

    /// How each ConfigMap of policies or data fares, by `namespace/name`.
    pub fn policy_statuses(&self) -> BTreeMap<Arc<str>, PolicyStatus> {
        let mut statuses = self.policies.statuses();
        if self.rego.label.is_none() {
            let maps = self.config_maps.values();
            let ignored = maps.filter(|map| {
                self.rego.namespaces.contains(&map.namespace) && &*map.name != ROOT_CA
            });
            for map in ignored {
                let id = format!("{}/{}", map.namespace, map.name);
                statuses.entry(id.into()).or_insert(PolicyStatus::Ignored);
            }
        }
        statuses
    }

    /// The policies, compiled.
    pub fn policies(&self) -> &PolicyBook {
        &self.policies
    }

    /// The ConfigMap of a name.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(&(namespace.into(), name.into()))
    }

    /// ConfigMaps whose annotation of points cannot be read, with the reason: they are asked
    /// everywhere.
    pub fn misplaced(&self) -> &BTreeMap<MapName, String> {
        &self.misplaced
    }

    /// The rulebook.
    pub fn book(&self) -> &RuleBook {
        &self.book
    }

    /// Takes what was found out about where we run.
    pub fn learn(&mut self, facts: Facts) {
        self.book.learn(facts);
        self.publish();
    }

    /// Takes what a source says, and publishes what comes of it.
    pub fn apply(&mut self, report: Report) -> Touched {
        let touched = match report {
            Report::Rules(update) => {
                let touched = self.book.update(update);
                if self.book.config().rego != self.rego {
                    self.rego = self.book.config().rego.clone();
                    self.policies.configure(settings(&self.rego));
                    self.read_all();
                }
                touched
            }
            Report::ConfigMaps(namespace, change) => self.change_config_maps(namespace, change),
            Report::Replicated(kind, change) => self.change_replicated(kind, change),
            Report::Unfollowed(watch) => self.forget(watch),
        };
        if touched != Touched::Nothing {
            self.publish();
        }
        touched
    }

    fn change_config_maps(&mut self, namespace: Arc<str>, change: Change<ConfigMap>) -> Touched {
        match change {
            Change::Snapshot(all) => {
                self.config_maps.retain(|name, _| name.0 != namespace);
                self.config_maps
                    .extend(all.into_iter().map(|map| (name(&map), map)));
                self.loaded_namespaces.insert(namespace);
                self.read_all();
            }
            Change::Apply(map) => {
                let name = name(&map);
                let before = self.config_maps.insert(name.clone(), map.clone());
                if before.is_some_and(|before| before.says_the_same(&map)) {
                    return Touched::Nothing;
                }
                let source = self.source(&map);
                for kind in [Kind::Policy, Kind::Data] {
                    if source.as_ref().is_none_or(|source| source.kind != kind) {
                        self.policies.delete(kind, &name.0, &name.1);
                    }
                }
                if let Some(source) = source {
                    self.policies.apply(source);
                }
            }
            Change::Delete(map) => {
                let name = name(&map);
                self.config_maps.remove(&name);
                self.misplaced.remove(&name);
                for kind in [Kind::Policy, Kind::Data] {
                    self.policies.delete(kind, &name.0, &name.1);
                }
            }
        }
        self.count();
        Touched::All
    }

    fn count(&mut self) {
        let mut counts = PolicyCounts::default();
        for status in self.policies.statuses().values() {
            match status {
                PolicyStatus::Ok { .. } => counts.ok += 1,
                PolicyStatus::Ignored => {}
                PolicyStatus::Error {
                    keeps_last_good: true,
                    ..
                } => counts.outdated += 1,
                PolicyStatus::Error { .. } => counts.unusable += 1,
            }
        }
        self.policy_counts = counts;
    }

    /// Gives all ConfigMaps to the policies anew.
    fn read_all(&mut self) {
        self.misplaced.clear();
        let maps: Vec<_> = self.config_maps.values().cloned().collect();
        let sources: Vec<_> = maps.iter().filter_map(|map| self.source(map)).collect();
        for kind in [Kind::Policy, Kind::Data] {
            let of_kind = sources.iter().filter(|source| source.kind == kind);
            self.policies.replace_all(kind, of_kind.cloned());
        }
        self.count();
    }

    /// A ConfigMap as policies or data; `None` where it is neither.
    fn source(&mut self, map: &ConfigMap) -> Option<PolicySource> {
        let known = self.policies.has_policy(&map.namespace, &map.name);
        let kind = kind(map, &self.rego, known)?;
        let points = map.annotations.get(rolegate_core::annotation::POINTS);
        let points = match points.map(Points::parse).transpose() {
            Ok(points) => {
                self.misplaced.remove(&name(map));
                points.unwrap_or_default()
            }
            Err(error) => {
                self.misplaced.insert(name(map), error.to_string());
                // Asked everywhere rather than nowhere.
                Points {
                    gate: true,
                    door: true,
                }
            }
        };
        Some(PolicySource {
            namespace: map.namespace.to_string(),
            name: map.name.to_string(),
            kind,
            points,
            entries: map.data.clone(),
        })
    }

    fn change_replicated(&mut self, kind: ResourceKind, change: Change<Replicated>) -> Touched {
        let object = |object: Replicated| rolegate_rego::Replicated {
            resource: kind.resource.to_string(),
            namespace: object.namespace.as_deref().map(str::to_owned),
            name: object.name.to_string(),
            object: object.object,
        };
        match change {
            Change::Snapshot(all) => {
                let (left_out, all): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|one| one.left_out > 0);
                let all: Vec<_> = all.into_iter().map(object).collect();
                self.policies.replicate_all(&kind.resource, &all);
                for one in left_out {
                    let namespace = one.namespace.as_deref();
                    let resource = &kind.resource;
                    self.policies
                        .leave_out(resource, namespace, &one.name, one.left_out);
                }
                self.loaded_kinds.insert(kind);
            }
            Change::Apply(changed) => self.policies.replicate(&object(changed)),
            Change::Delete(gone) => {
                let namespace = gone.namespace.as_deref();
                self.policies.forget(&kind.resource, namespace, &gone.name);
            }
        }
        Touched::All
    }

    /// Forgets what is no longer followed, so that it counts as not seen if it is needed again.
    fn forget(&mut self, watch: Watch) -> Touched {
        match watch {
            Watch::Config => Touched::Nothing,
            Watch::Grants => self.book.forget_grants(),
            Watch::ConfigMaps(namespace) => {
                self.loaded_namespaces.remove(&namespace);
                self.config_maps.retain(|name, _| name.0 != namespace);
                self.read_all();
                Touched::All
            }
            Watch::Replicated(kind) => {
                self.policies.replicate_all(&kind.resource, []);
                self.loaded_kinds.remove(&kind);
                Touched::All
            }
        }
    }

    /// What must be followed for the rules as they are now.
    fn find_needs(&self, policies: &Policies) -> Needs {
        let config = self.book.config();
        let mut needs = Needs {
            grants: config.modes.grants != Mode::Off,
            ..Needs::default()
        };
        if config.modes.rego == Mode::Off {
            return needs;
        }
        needs.config_maps = config.rego.namespaces.clone();
        let namespaces = ResourceKind::namespaces();
        let kinds = config.rego.replicate.iter().chain([&namespaces]);
        let are_read = kinds.filter(|kind| {
            policies.read_replicated(&kind.resource, |points| match self.point {
                Point::Gate => points.gate,
                Point::Door => points.door,
            })
        });
        // Policies to replicate anew are dropped first.
        let anew = self.policies.fit_again();
        let are_read = are_read.filter(|kind| !anew.contains(&*kind.resource));
        needs.replicated = are_read.cloned().collect();
        needs
    }

    fn publish(&mut self) {
        let policies = self.policies.snapshot();
        let needs = self.find_needs(&policies);
        let namespaces = &mut needs.config_maps.iter();
        let loaded = namespaces.all(|namespace| self.loaded_namespaces.contains(namespace))
            && needs.replicated.is_subset(&self.loaded_kinds);
        self.book
            .set_rego(loaded.then(|| Arc::new(RegoLayer::new(policies.clone())) as Arc<dyn Layer>));
        let rules = self.book.rule_set();
        let gate = rules.without("rego");
        let known = self.book.needs(match self.point {
            Point::Gate => &gate,
            Point::Door => &rules,
        });
        let in_force = RulesInForce::of(&self.book, rules.base.clone(), self.policy_counts);
        let snapshot = Snapshot {
            gate,
            rules,
            config: self.book.config().clone(),
            grants: self.book.grants().clone(),
            policies,
            missing: match self.unseen() {
                Some(_) => None,
                None => self.missing(),
            },
            in_force,
            needs,
        };
        self.rules.publish(snapshot, known);
    }
}

fn name(map: &ConfigMap) -> MapName {
    (map.namespace.clone(), map.name.clone())
}

fn settings(config: &RegoConfig) -> Settings {
    let required = config.required.iter();
    Settings {
        limits: Limits::default(),
        required: required
            .map(|(namespace, name)| Required {
                namespace: namespace.to_string(),
                name: name.to_string(),
            })
            .collect(),
        wrap_pods: config.wrap_pods,
    }
}

/// Every namespace has one of these, which is nobody's policy.
const ROOT_CA: &str = "kube-root-ca.crt";

/// What a ConfigMap holds, if it is one of policies or data. `known`: it was one of policies before.
fn kind(map: &ConfigMap, config: &RegoConfig, known: bool) -> Option<Kind> {
    if !config.namespaces.contains(&map.namespace) {
        return None;
    }
    let has = |key: &str, value: &str| map.labels.get(key) == Some(value);
    if has(DATA_LABEL.0, DATA_LABEL.1) {
        return Some(Kind::Data);
    }
    match &config.label {
        Some((key, value)) => has(key, value).then_some(Kind::Policy),
        // What isn't Rego is no policy that is broken, or anybody's ConfigMap would refuse everything;
        // one that was a policy before is.
        None => {
            let mut entries = map.data.iter();
            let is_rego = known || entries.any(|(name, text)| looks_like_rego(name, text));
            is_rego.then_some(Kind::Policy)
        }
    }
}

#[cfg(test)]
mod tests;
