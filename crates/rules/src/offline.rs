//! Rules from documents: manifests of a repository, or what was listed from a cluster. The same
//! objects become the same rules as when they are watched.

mod unused;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use rolegate_api::{RoleGrant, RolegateConfig};
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, PERMITTED};
use rolegate_core::config::{DATA_LABEL, Modes, RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::grant::Grant;
use rolegate_core::key_values::KeyValues;
use rolegate_core::layer::Mode;
use rolegate_core::namespace::Namespace;
use rolegate_core::rulebook::{ClusterConfig, Facts, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::{Change, Workload};
use rolegate_kube::config_maps::{self, ConfigMap};
use rolegate_kube::replicated::Replicated;
use rolegate_kube::{namespaces, workloads};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::keeper::{Keeper, Point, Report};

/// Most bytes of a name in an error.
const LONGEST: usize = 80;

/// What shapes rules beside the documents.
#[derive(Debug, Clone)]
pub struct OfflineOptions {
    /// What counts where there is no `RolegateConfig` among the documents, and completes one.
    pub flags: RuleConfig,
    /// What it means that there is none.
    pub without_config: ClusterConfig,
    /// Whether, where none is used, the modes of layers are guessed by what rules there are, and
    /// not those of the flags.
    pub guess_modes: bool,
    /// The modes of layers, if not those that are configured.
    pub modes: Option<Modes>,
    /// The annotations' keys.
    pub keys: AnnotationKeys,
    /// Which policies count.
    pub point: Point,
    /// Which workloads share a session.
    pub scope: SessionScope,
    /// The life asked of STS, seconds.
    pub session_seconds: u32,
    /// Modules of Rego that are in no ConfigMap: each is a policy, asked at gates.
    pub modules: Vec<Module>,
}

/// A module of Rego in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The file, by which the policy is named.
    pub file: String,
    /// The text.
    pub text: String,
}

impl Module {
    /// The entry that the module would be of a ConfigMap: its file without folders.
    pub fn entry(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }
}

/// Something among the documents that was written as a policy and of which nothing is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Its place.
    pub place: Origin,
    /// Its name, `namespace/name`, or the file.
    pub name: String,
    /// The reason, and what to do.
    pub why: String,
}

/// The place that something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A document, from 0.
    Document(usize),
    /// A module, from 0.
    Module(usize),
}

impl Default for OfflineOptions {
    fn default() -> Self {
        Self {
            flags: RuleConfig::default(),
            without_config: ClusterConfig::NotUsed,
            guess_modes: true,
            modes: None,
            keys: AnnotationKeys::default(),
            point: Point::Gate,
            scope: SessionScope::Workload,
            session_seconds: 3600,
            modules: Vec::new(),
        }
    }
}

/// A document that is no object of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {why}")]
pub struct OfflineError {
    /// The place among the documents, from 0.
    pub place: usize,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What is wrong, and what to do.
    pub why: String,
}

/// Rules from documents.
#[derive(Debug)]
pub struct Offline {
    /// The rules.
    pub keeper: Keeper,
    /// The pods among the documents.
    pub workloads: Vec<Workload>,
    /// What was taken for granted, in sentences.
    pub assumed: Vec<String>,
    /// Policies of which nothing is asked.
    pub unused: Vec<Unused>,
    /// The name of each policy, `namespace/name`, and where it comes from.
    pub policies: Vec<(String, Origin)>,
}

/// Reads rules from documents. Namespaces that objects are in and that no document describes are
/// taken to be without labels and annotations. Documents of other kinds count where policies have
/// them replicated.
///
/// # Errors
/// [`OfflineError`]: the first document of one of our kinds that is malformed.
pub fn load(documents: &[Value], options: OfflineOptions) -> Result<Offline, OfflineError> {
    let mut read = Documents::default();
    for (place, document) in documents.iter().enumerate() {
        read.take(place, &settled(document), &options.keys)?;
    }
    let mut assumed = Vec::new();
    let mut flags = options.flags;
    let is_unused = read.config.is_none() && options.without_config == ClusterConfig::NotUsed;
    if is_unused && options.guess_modes {
        flags.modes = read.modes(&flags, !options.modules.is_empty());
        assumed.push(format!(
            "there is no RolegateConfig: layer namespace is {}, grants {}, rego {}",
            flags.modes.namespace.as_str(),
            flags.modes.grants.as_str(),
            flags.modes.rego.as_str(),
        ));
    }
    if let Some(modes) = options.modes {
        flags.modes = modes;
        if let Some(config) = &mut read.config {
            config.modes = modes;
        }
    }
    let config = match read.config.take() {
        Some(config) => ClusterConfig::Is(config.into()),
        None => options.without_config,
    };
    read.assume_namespaces(&mut assumed);
    let mut keeper = Keeper::new(flags, options.point, options.scope, options.session_seconds);
    keeper.learn(Facts::default());
    let namespaces = read.namespaces.into_values().collect();
    for report in [
        Report::Rules(RuleUpdate::Config(config)),
        Report::Rules(RuleUpdate::Namespaces(Change::Snapshot(namespaces))),
        Report::Rules(RuleUpdate::Grants(Change::Snapshot(read.grants))),
    ] {
        keeper.apply(report);
    }
    let policies = keeper.book().config().rego.clone();
    let from_files = file_policies(&options.modules, &policies);
    for namespace in &policies.namespaces {
        let maps = read.config_maps.iter().map(|(_, map)| map);
        let maps = maps.chain(from_files.iter());
        let maps = maps.filter(|map| map.namespace == *namespace).cloned();
        keeper.apply(Report::ConfigMaps(
            namespace.clone(),
            Change::Snapshot(maps.collect()),
        ));
    }
    let kinds = policies.replicate.iter().cloned();
    for kind in kinds.chain([ResourceKind::namespaces()]) {
        let objects = read.objects.iter().filter(|object| is_of(object, &kind));
        let objects = objects.filter_map(|object| replicated(object, &kind));
        keeper.apply(Report::Replicated(
            kind.clone(),
            Change::Snapshot(objects.collect()),
        ));
    }
    let named = |map: &ConfigMap| format!("{}/{}", map.namespace, map.name);
    let maps = read.config_maps.iter();
    let maps = maps.map(|(place, map)| (named(map), Origin::Document(*place)));
    let files = from_files.iter().enumerate();
    let files = files.map(|(place, map)| (named(map), Origin::Module(place)));
    Ok(Offline {
        unused: unused::find(
            documents,
            &read.config_maps,
            &from_files,
            &options.modules,
            &keeper,
        ),
        policies: maps.chain(files).collect(),
        keeper,
        workloads: read.workloads,
        assumed,
    })
}

/// Modules in files as the ConfigMaps of policies that they would be.
fn file_policies(modules: &[Module], config: &RegoConfig) -> Vec<ConfigMap> {
    let Some(namespace) = config.namespaces.first() else {
        return Vec::new();
    };
    let label = config.label.iter();
    let label = label.map(|(key, value)| (key.as_ref(), value.as_ref()));
    let labels: KeyValues = label.collect();
    let maps = modules.iter().map(|module| ConfigMap {
        namespace: namespace.clone(),
        name: module.file.as_str().into(),
        labels: labels.clone(),
        data: BTreeMap::from([(module.entry().to_owned(), module.text.clone())]),
        ..ConfigMap::default()
    });
    maps.collect()
}

#[derive(Default)]
struct Documents {
    config: Option<RuleConfig>,
    grants: Vec<Grant>,
    namespaces: BTreeMap<String, Namespace>,
    /// With their places among the documents.
    config_maps: Vec<(usize, ConfigMap)>,
    workloads: Vec<Workload>,
    /// Everything, for replication.
    objects: Vec<Value>,
    /// Namespaces that objects are in.
    mentioned: BTreeSet<String>,
    /// Namespaces that ConfigMaps are in.
    of_config_maps: BTreeSet<String>,
}

impl Documents {
    fn take(
        &mut self,
        place: usize,
        document: &Value,
        keys: &AnnotationKeys,
    ) -> Result<(), OfflineError> {
        let text = |path: &str| document.pointer(path).and_then(Value::as_str);
        let (group, kind) = (group(document), text("/kind").unwrap_or_default());
        let wrong = |why: String| OfflineError {
            place,
            kind: short(kind),
            name: short(text("/metadata/name").unwrap_or_default()),
            why,
        };
        let name = text("/metadata/name");
        match (group, kind) {
            ("rolegate.dev", "RoleGrant") => {
                let grant: RoleGrant = parse(document).map_err(wrong)?;
                self.grants.push((&grant).into());
            }
            ("rolegate.dev", "RolegateConfig") => {
                let config: RolegateConfig = parse(document).map_err(wrong)?;
                if self.config.is_some() {
                    return Err(wrong("there is one already, and only one counts".into()));
                }
                let config = RuleConfig::try_from(&config);
                self.config = Some(config.map_err(|error| wrong(error.to_string()))?);
            }
            ("", "Namespace") => {
                let name = name.ok_or_else(|| wrong("it has no metadata.name".into()))?;
                // As the API server does.
                let mut object = document.clone();
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
                    if let Some(labels) = labels.as_object_mut() {
                        labels.insert("kubernetes.io/metadata.name".into(), name.into());
                    }
                }
                let namespace = namespaces::read(&object, keys).map_err(wrong)?;
                self.namespaces.insert(name.to_owned(), namespace);
                self.objects.push(object);
                return Ok(());
            }
            ("", "ConfigMap") => {
                // As kubectl does with one that names no namespace.
                let mut object = document.clone();
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    let namespace = metadata.entry("namespace").or_insert(Value::Null);
                    if namespace.as_str().is_none_or(str::is_empty) {
                        *namespace = "default".into();
                    }
                }
                let map = config_maps::read(&object).map_err(wrong)?;
                self.of_config_maps.insert(map.namespace.to_string());
                self.config_maps.push((place, map));
                self.objects.push(object);
                return Ok(());
            }
            ("", "Pod") if document.pointer("/metadata/uid").is_some() => {
                let workload = workloads::read(document, keys).map_err(wrong)?;
                self.workloads.push(workload);
            }
            _ => {}
        }
        let namespace = text("/metadata/namespace").unwrap_or_default();
        if !namespace.is_empty() {
            self.mentioned.insert(namespace.to_owned());
        }
        self.objects.push(document.clone());
        Ok(())
    }

    /// The modes that the documents speak for.
    fn modes(&self, flags: &RuleConfig, has_modules: bool) -> Modes {
        let on = |yes: bool, flag: Mode| match yes {
            true => Mode::Enforce,
            false => flag,
        };
        let maps = self.config_maps.iter().map(|(_, map)| map);
        let policies = has_modules
            || maps.into_iter().any(|map| {
                let labelled = match &flags.rego.label {
                    Some((key, value)) => map.labels.get(key) == Some(value),
                    None => true,
                };
                let is_data = map.labels.get(DATA_LABEL.0) == Some(DATA_LABEL.1);
                flags.rego.namespaces.contains(&map.namespace) && labelled && !is_data
            });
        let annotated = self
            .namespaces
            .values()
            .any(|namespace| namespace.allowed_roles.is_some() || namespace.permitted.is_some());
        let others = !self.grants.is_empty() || policies;
        Modes {
            namespace: match annotated || !others {
                true => Mode::Enforce,
                false => Mode::Off,
            },
            grants: on(!self.grants.is_empty(), flags.modes.grants),
            rego: on(policies, flags.modes.rego),
        }
    }

    fn assume_namespaces(&mut self, assumed: &mut Vec<String>) {
        let mentioned = std::mem::take(&mut self.mentioned);
        let of_config_maps = std::mem::take(&mut self.of_config_maps);
        for name in mentioned.union(&of_config_maps) {
            if self.namespaces.contains_key(name) {
                continue;
            }
            let labels = [("kubernetes.io/metadata.name", name.as_str())];
            // Namespaces that only hold ConfigMaps have no pods to decide about.
            if mentioned.contains(name) {
                assumed.push(format!(
                    "namespace {} is taken to have no labels and neither {ALLOWED_ROLES} nor \
                     {PERMITTED}",
                    short(name)
                ));
            }
            self.objects.push(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            }));
            let namespace = Namespace {
                name: name.as_str().into(),
                labels: labels.into_iter().collect(),
                ..Namespace::default()
            };
            self.namespaces.insert(name.clone(), namespace);
        }
    }
}

/// A document with an empty text where a map of texts has null, as the API server reads it.
fn settled(document: &Value) -> Cow<'_, Value> {
    let mut settled = Cow::Borrowed(document);
    for map in ["/metadata/annotations", "/metadata/labels", "/data"] {
        let texts = document.pointer(map).and_then(Value::as_object);
        if texts.is_none_or(|texts| !texts.values().any(Value::is_null)) {
            continue;
        }
        if let Some(Value::Object(texts)) = settled.to_mut().pointer_mut(map) {
            for text in texts.values_mut().filter(|text| text.is_null()) {
                *text = "".into();
            }
        }
    }
    settled
}

fn group(document: &Value) -> &str {
    let version = document.get("apiVersion").and_then(Value::as_str);
    version
        .and_then(|version| version.split_once('/'))
        .map_or("", |(group, _)| group)
}

fn parse<T: DeserializeOwned>(document: &Value) -> Result<T, String> {
    T::deserialize(document).map_err(|error| error.to_string())
}

/// Whether a document is of this kind. Its plural is not in it, so it is made as Kubernetes makes
/// those of its own kinds.
fn is_of(document: &Value, kind: &ResourceKind) -> bool {
    let Some(name) = document.get("kind").and_then(Value::as_str) else {
        return false;
    };
    let lower = name.to_lowercase();
    let plural = if let Some(stem) = lower.strip_suffix('y') {
        format!("{stem}ies")
    } else if lower.ends_with('s') || lower.ends_with("ch") || lower.ends_with('x') {
        format!("{lower}es")
    } else {
        format!("{lower}s")
    };
    *kind.group == *group(document) && *kind.resource == *plural
}

fn replicated(document: &Value, kind: &ResourceKind) -> Option<Replicated> {
    let text = |path: &str| document.pointer(path).and_then(Value::as_str);
    Some(Replicated {
        resource: kind.clone(),
        namespace: text("/metadata/namespace").map(Into::into),
        name: text("/metadata/name")?.into(),
        object: document.to_string().into(),
        left_out: 0,
    })
}

fn short(text: &str) -> String {
    text.chars()
        .take(LONGEST)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rolegate_core::decision::Decision;

    use super::*;

    fn grant() -> Value {
        json!({
            "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": {"name": "payments"},
            "spec": {
                "roles": ["arn:aws:iam::123456789012:role/payments-*"],
                "subjects": [{"namespaces": ["payments"]}],
            },
        })
    }

    fn pod(role: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "api", "namespace": "payments", "uid": "1",
                "annotations": {"iam.amazonaws.com/role": format!("arn:aws:iam::123456789012:role/{role}")},
            },
            "spec": {},
        })
    }

    fn allowed(documents: &[Value]) -> Vec<bool> {
        let offline = load(documents, OfflineOptions::default()).unwrap();
        let rules = offline.keeper.rules().load().rules.clone();
        let decided = |pod| rules.decide(pod, Timestamp::UNIX_EPOCH);
        let allowed = |pod| matches!(decided(pod), Decision::Allow { .. });
        offline.workloads.iter().map(allowed).collect()
    }

    #[test]
    fn grants_alone_are_enforced() {
        let documents = [grant(), pod("payments-db"), pod("admin")];
        assert_eq!(allowed(&documents), [true, false]);
        assert_eq!(allowed(&documents[1..]), [false, false], "nothing allows");
    }

    #[test]
    fn a_configuration_says_which_layers_count() {
        let config = json!({
            "apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
            "metadata": {"name": "cluster"},
            "spec": {"layers": {"namespace": "off", "grants": "audit"}},
        });
        assert_eq!(allowed(&[config, grant(), pod("admin")]), [true]);
    }

    #[test]
    fn null_is_an_empty_text_in_annotations_labels_and_data() {
        let mut pod = pod("reader");
        pod["metadata"]["annotations"]["iam.amazonaws.com/role"] = Value::Null;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata":
            {"name": "payments", "annotations": {"iam.amazonaws.com/allowed-roles": null}}});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": null},
            "metadata": {"name": "x", "namespace": "opa", "labels": {"a": null}}});
        let documents = [pod, namespace, map];
        let offline = load(&documents, OfflineOptions::default()).unwrap();
        assert_eq!(offline.workloads[0].wish.role.as_deref(), Some(""));
    }

    #[test]
    fn what_is_malformed_is_told_with_its_place() {
        let mut misspelt = grant();
        misspelt["spec"]["subject"] = json!([]);
        let error = load(&[pod("x"), misspelt], OfflineOptions::default()).unwrap_err();
        assert_eq!((error.place, error.name.as_str()), (1, "payments"));
        assert!(error.to_string().contains("subject"), "{error}");
    }

    #[test]
    fn policies_read_the_documents_as_data() {
        let policy = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "teams", "namespace": "opa",
                "labels": {"openpolicyagent.org/policy": "rego"},
                "annotations": {"rolegate.dev/points": "gate,door"},
            },
            "data": {"teams.rego": "package kubernetes.admission\n\
                deny[msg] {\n  name := input.request.namespace\n\
                  not data.kubernetes.namespaces[name].metadata.labels.team\n\
                  msg := \"the namespace has no team\"\n}\n"},
        });
        let namespace = |labels: Value| {
            json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": "payments", "labels": labels}})
        };
        let with = |labels| allowed(&[policy.clone(), namespace(labels), pod("x")]);
        assert_eq!(with(json!({"team": "payments"})), [true]);
        assert_eq!(with(json!({})), [false]);
    }
}
