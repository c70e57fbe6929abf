//! The only writer of the rules: applies the reports of sources and publishes snapshots.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rolegate_core::config::{DATA_LABEL, RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::decision::NotSynced;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::layer::{Layer, LayerId, Mode};
use rolegate_core::rule_set_builder::{AwsEnvironment, Invalidated, RuleSetBuilder, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_kube::config_maps::ConfigMap;
use rolegate_kube::replicated::Replicated;
use rolegate_rego::{
    EnforcementPoints, Kind, Limits, Policies, PolicySource, PolicyStatus, PolicyStore, RegoLayer,
    Required, Settings, looks_like_rego,
};

use crate::in_force::{PolicyCounts, RulesInForce};
use crate::rules::RuleStore;
use crate::snapshot::{Needs, Snapshot, Watch};

/// A report of a source.
#[derive(Debug, Clone)]
pub enum Report {
    /// A change of the configuration, grants or namespaces.
    Rules(RuleUpdate),
    /// A change of the ConfigMaps in one namespace.
    ConfigMaps(Arc<str>, Change<ConfigMap>),
    /// A change of the objects of one kind.
    Replicated(ResourceKind, Change<Replicated>),
    /// A change of service accounts, which their store already contains: the affected pods.
    ServiceAccounts(Invalidated),
    /// The end of a watch. Objects that it reported may be outdated.
    Unwatched(Watch),
}

type MapName = (Arc<str>, Arc<str>);

/// The writer of the rules.
#[derive(Debug)]
pub struct RuleStoreWriter {
    builder: RuleSetBuilder,
    point: EnforcementPoint,
    policies: PolicyStore,
    /// The configuration with which the policies were last compiled.
    rego: RegoConfig,
    config_maps: HashMap<MapName, ConfigMap>,
    /// ConfigMaps with an invalid enforcement points annotation.
    invalid_points: BTreeMap<MapName, String>,
    policy_counts: PolicyCounts,
    loaded_namespaces: HashSet<Arc<str>>,
    loaded_kinds: BTreeSet<ResourceKind>,
    rules: RuleStore,
}

impl RuleStoreWriter {
    /// Creates a writer without any rules. `flags` apply if the cluster has no configuration.
    pub fn new(
        flags: RuleConfig,
        point: EnforcementPoint,
        scope: SessionScope,
        session_seconds: u32,
    ) -> Self {
        let rego = flags.rego.clone();
        let mut writer = Self {
            builder: RuleSetBuilder::new(flags, scope, session_seconds),
            point,
            policies: PolicyStore::new(settings(&rego)),
            rego,
            config_maps: HashMap::new(),
            invalid_points: BTreeMap::new(),
            policy_counts: PolicyCounts::default(),
            loaded_namespaces: HashSet::new(),
            loaded_kinds: BTreeSet::new(),
            rules: RuleStore::default(),
        };
        writer.publish();
        writer
    }

    /// Returns the readers' handle.
    pub fn rules(&self) -> RuleStore {
        self.rules.clone()
    }

    /// Returns the first source that must be loaded before decisions are made.
    pub fn not_synced(&self) -> Option<NotSynced> {
        self.builder.not_synced()
    }

    /// Returns the reason why every request is denied, if there is one.
    pub fn missing(&self) -> Option<Arc<str>> {
        self.builder.missing().or_else(|| {
            let rego = self.builder.config().modes[LayerId::Rego] == Mode::Enforce;
            let missing = self.policies.missing();
            (rego && !missing.is_empty()).then(|| {
                let missing: Vec<_> = missing.iter().map(|name| &**name).collect();
                let missing = missing.join(", ");
                format!("policies are missing or invalid: {missing}").into()
            })
        })
    }

    /// Returns the status of each policy or data ConfigMap, by `namespace/name`.
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

    /// Returns the compiled policies.
    pub fn policies(&self) -> &PolicyStore {
        &self.policies
    }

    /// Returns a ConfigMap by name.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(&(namespace.into(), name.into()))
    }

    /// Returns the ConfigMaps with an invalid enforcement points annotation, with the error. Their
    /// policies are enforced at all points.
    pub fn invalid_points(&self) -> &BTreeMap<MapName, String> {
        &self.invalid_points
    }

    /// Returns the rule set builder.
    pub fn builder(&self) -> &RuleSetBuilder {
        &self.builder
    }

    /// Sets the detected facts about the AWS environment.
    pub fn set_aws_environment(&mut self, aws_environment: AwsEnvironment) {
        self.builder.set_aws_environment(aws_environment);
        self.publish();
    }

    /// Applies a report and publishes the result.
    pub fn apply(&mut self, report: Report) -> Invalidated {
        let touched = match report {
            Report::Rules(update) => {
                let touched = self.builder.update(update);
                if self.builder.config().rego != self.rego {
                    self.rego = self.builder.config().rego.clone();
                    self.policies.configure(settings(&self.rego));
                    self.read_all();
                }
                touched
            }
            Report::ConfigMaps(namespace, change) => self.change_config_maps(namespace, change),
            Report::Replicated(kind, change) => self.change_replicated(kind, change),
            Report::Unwatched(watch) => self.forget(watch),
            // No rule has changed, so no new generation is published.
            Report::ServiceAccounts(affected) => return affected,
        };
        if touched != Invalidated::Nothing {
            self.publish();
        }
        touched
    }

    fn change_config_maps(
        &mut self,
        namespace: Arc<str>,
        change: Change<ConfigMap>,
    ) -> Invalidated {
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
                if before.is_some_and(|before| before.has_same_content(&map)) {
                    return Invalidated::Nothing;
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
                self.invalid_points.remove(&name);
                for kind in [Kind::Policy, Kind::Data] {
                    self.policies.delete(kind, &name.0, &name.1);
                }
            }
        }
        self.count();
        Invalidated::All
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

    /// Passes all ConfigMaps to the policy store again.
    fn read_all(&mut self) {
        self.invalid_points.clear();
        let maps: Vec<_> = self.config_maps.values().cloned().collect();
        let sources: Vec<_> = maps.iter().filter_map(|map| self.source(map)).collect();
        for kind in [Kind::Policy, Kind::Data] {
            let of_kind = sources.iter().filter(|source| source.kind == kind);
            self.policies.replace_all(kind, of_kind.cloned());
        }
        self.count();
    }

    /// Returns a ConfigMap as a source of policies or data; `None` if it is neither.
    fn source(&mut self, map: &ConfigMap) -> Option<PolicySource> {
        let known = self.policies.has_policy(&map.namespace, &map.name);
        let kind = kind(map, &self.rego, known)?;
        let points = map
            .annotations
            .get(rolegate_core::annotation::ENFORCEMENT_POINTS);
        let points = match points.map(EnforcementPoints::parse).transpose() {
            Ok(points) => {
                self.invalid_points.remove(&name(map));
                points.unwrap_or_default()
            }
            Err(error) => {
                self.invalid_points.insert(name(map), error.to_string());
                // With an invalid annotation, enforced everywhere rather than nowhere.
                EnforcementPoints {
                    admission: true,
                    agent: true,
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

    fn change_replicated(&mut self, kind: ResourceKind, change: Change<Replicated>) -> Invalidated {
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
        Invalidated::All
    }

    /// Discards objects that are no longer watched, so that they count as not synced when they are
    /// needed again.
    fn forget(&mut self, watch: Watch) -> Invalidated {
        match watch {
            Watch::Config => Invalidated::Nothing,
            Watch::Grants => self.builder.forget_grants(),
            Watch::ConfigMaps(namespace) => {
                self.loaded_namespaces.remove(&namespace);
                self.config_maps.retain(|name, _| name.0 != namespace);
                self.read_all();
                Invalidated::All
            }
            Watch::Replicated(kind) => {
                self.policies.replicate_all(&kind.resource, []);
                self.loaded_kinds.remove(&kind);
                Invalidated::All
            }
        }
    }

    /// Returns the objects to watch for the current rules.
    fn find_needs(&self, policies: &Policies) -> Needs {
        let config = self.builder.config();
        let mut needs = Needs {
            grants: config.modes[LayerId::Grants] != Mode::Off,
            ..Needs::default()
        };
        if config.modes[LayerId::Rego] == Mode::Off {
            return needs;
        }
        needs.config_maps = config.rego.namespaces.clone();
        let namespaces = ResourceKind::namespaces();
        let kinds = config.rego.replicate.iter().chain([&namespaces]);
        let are_read = kinds.filter(|kind| {
            policies.read_replicated(&kind.resource, |points| match self.point {
                EnforcementPoint::Admission => points.admission,
                EnforcementPoint::Agent => points.agent,
            })
        });
        // Kinds to reload are dropped first.
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
        self.builder
            .set_rego(loaded.then(|| Arc::new(RegoLayer::new(policies.clone())) as Arc<dyn Layer>));
        let rules = self.builder.rule_set();
        let admission = rules.without(LayerId::Rego);
        let known = self.builder.needs(match self.point {
            EnforcementPoint::Admission => &admission,
            EnforcementPoint::Agent => &rules,
        });
        let in_force = RulesInForce::of(&self.builder, rules.base.clone(), self.policy_counts);
        let snapshot = Snapshot {
            admission,
            rules,
            config: self.builder.config().clone(),
            grants: self.builder.grants().clone(),
            policies,
            missing: match self.not_synced() {
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

/// Kubernetes creates this ConfigMap in every namespace; it is never a policy.
const ROOT_CA: &str = "kube-root-ca.crt";

/// Returns the content type of a ConfigMap with policies or data. `known` is true if it contained
/// policies before.
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
        // Content that is not Rego is not a broken policy; otherwise any ConfigMap could cause all
        // requests to be denied. If it was a policy before, it is.
        None => {
            let mut entries = map.data.iter();
            let is_rego = known || entries.any(|(name, text)| looks_like_rego(name, text));
            is_rego.then_some(Kind::Policy)
        }
    }
}

#[cfg(test)]
mod tests;
