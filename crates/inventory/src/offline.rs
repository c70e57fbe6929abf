//! Rules from documents: manifests in a repository, or objects listed from a cluster. The result is
//! the same as from watching those objects.

mod unused;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use rolegate_api::{RoleGrant, RolegateConfig};
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, PERMITTED};
use rolegate_core::config::{DATA_LABEL, Modes, RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::grant::Grant;
use rolegate_core::labels::Labels;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, ClusterConfig, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::{Change, Workload};
use rolegate_kube::config_maps::{self, ConfigMap};
use rolegate_kube::replicated::Replicated;
use rolegate_kube::{namespaces, workloads};
use rolegate_rules::store::{Report, RuleStoreWriter};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Maximum size of a name in an error, in bytes.
const MAX_NAME_BYTES: usize = 80;

/// Settings for loading documents.
#[derive(Debug, Clone)]
pub struct OfflineOptions {
    /// The configuration that applies without a `RolegateConfig` among the documents, and completes
    /// one.
    pub flags: RuleConfig,
    /// The state to assume without a `RolegateConfig`.
    pub without_config: ClusterConfig,
    /// True to derive the modes of layers from the rules present, rather than from flags, if no
    /// `RolegateConfig` is used.
    pub guess_modes: bool,
    /// Modes of the layers that override the configured ones.
    pub modes: Option<Modes>,
    /// The annotation keys.
    pub keys: AnnotationKeys,
    /// The enforcement point whose policies apply.
    pub point: EnforcementPoint,
    /// The set of pods that share a session.
    pub scope: SessionScope,
    /// Requested session duration, in seconds.
    pub session_seconds: u32,
    /// Rego modules outside ConfigMaps. Each is a policy that is enforced at admission.
    pub modules: Vec<Module>,
}

/// A Rego module in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The file, which names the policy.
    pub file: String,
    /// The source text.
    pub text: String,
}

impl Module {
    /// Returns the key that the module would have in a ConfigMap: the file name without
    /// directories.
    pub fn entry(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }
}

/// A document or module that was written as a policy but has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// The origin of the policy.
    pub place: Origin,
    /// The name, `namespace/name`, or the file.
    pub name: String,
    /// The reason and its correction.
    pub why: String,
}

/// The origin of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The index of a document.
    Document(usize),
    /// The index of a module.
    Module(usize),
}

impl Default for OfflineOptions {
    fn default() -> Self {
        Self {
            flags: RuleConfig::default(),
            without_config: ClusterConfig::Unused,
            guess_modes: true,
            modes: None,
            keys: AnnotationKeys::default(),
            point: EnforcementPoint::Admission,
            scope: SessionScope::Workload,
            session_seconds: 3600,
            modules: Vec::new(),
        }
    }
}

/// A malformed document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {why}")]
pub struct OfflineError {
    /// The index of the document.
    pub place: usize,
    /// The kind of the object.
    pub kind: String,
    /// The name of the object.
    pub name: String,
    /// The error and its correction.
    pub why: String,
}

/// Rules loaded from documents.
#[derive(Debug)]
pub struct Offline {
    /// The rules.
    pub writer: RuleStoreWriter,
    /// The pods in the documents.
    pub workloads: Vec<Workload>,
    /// Assumptions that were made, one sentence each.
    pub assumed: Vec<String>,
    /// Policies without effect.
    pub unused: Vec<Unused>,
    /// The name, `namespace/name`, and origin of each policy.
    pub policies: Vec<(String, Origin)>,
}

/// Loads rules from documents. Namespaces that objects refer to but no document describes are
/// assumed to have no labels or annotations. Other kinds are used if policies replicate them.
///
/// # Errors
/// [`OfflineError`] for the first malformed document of a kind that rolegate reads.
pub fn load(documents: &[Value], options: OfflineOptions) -> Result<Offline, OfflineError> {
    let mut read = Documents::default();
    for (place, document) in documents.iter().enumerate() {
        read.take(place, &settled(document), &options.keys)?;
    }
    let mut assumed = Vec::new();
    let mut flags = options.flags;
    let is_unused = read.config.is_none() && options.without_config == ClusterConfig::Unused;
    if is_unused && options.guess_modes {
        flags.modes = read.modes(&flags, !options.modules.is_empty());
        assumed.push(format!(
            "no RolegateConfig found: assuming layer {}",
            described(flags.modes)
        ));
    }
    if let Some(modes) = options.modes {
        flags.modes = modes;
        if let Some(config) = &mut read.config {
            config.modes = modes;
        }
    }
    let config = match read.config.take() {
        Some(config) => ClusterConfig::Valid(config.into()),
        None => options.without_config,
    };
    read.assume_namespaces(&mut assumed);
    let mut writer =
        RuleStoreWriter::new(flags, options.point, options.scope, options.session_seconds);
    writer.set_aws_environment(AwsEnvironment::default());
    let namespaces = std::mem::take(&mut read.namespaces);
    let namespaces = namespaces.into_values().collect();
    let grants = std::mem::take(&mut read.grants);
    for report in [
        Report::Rules(RuleUpdate::Config(config)),
        Report::Rules(RuleUpdate::Namespaces(Change::Snapshot(namespaces))),
        Report::Rules(RuleUpdate::Grants(Change::Snapshot(grants))),
    ] {
        writer.apply(report);
    }
    let policies = writer.builder().config().rego.clone();
    let from_files = file_policies(&options.modules, &policies);
    apply_policies(&mut writer, &read, &policies, &from_files);
    let named = |map: &ConfigMap| format!("{}/{}", map.namespace, map.name);
    let maps = read
        .config_maps
        .iter()
        .map(|(place, map)| (named(map), Origin::Document(*place)));
    let files = from_files
        .iter()
        .enumerate()
        .map(|(place, map)| (named(map), Origin::Module(place)));
    Ok(Offline {
        unused: unused::find(
            documents,
            &read.config_maps,
            &from_files,
            &options.modules,
            &writer,
        ),
        policies: maps.chain(files).collect(),
        writer,
        workloads: read.workloads,
        assumed,
    })
}

/// Applies the ConfigMaps and replicated objects that the configuration selects.
fn apply_policies(
    writer: &mut RuleStoreWriter,
    read: &Documents,
    config: &RegoConfig,
    from_files: &[ConfigMap],
) {
    for namespace in &config.namespaces {
        let maps = read
            .config_maps
            .iter()
            .map(|(_, map)| map)
            .chain(from_files)
            .filter(|map| map.namespace == *namespace)
            .cloned();
        writer.apply(Report::ConfigMaps(
            namespace.clone(),
            Change::Snapshot(maps.collect()),
        ));
    }
    let kinds = config.replicate.iter().cloned();
    for kind in kinds.chain([ResourceKind::namespaces()]) {
        let objects = read
            .objects
            .iter()
            .filter(|object| is_of(object, &kind))
            .filter_map(|object| replicated(object, &kind));
        writer.apply(Report::Replicated(
            kind.clone(),
            Change::Snapshot(objects.collect()),
        ));
    }
}

/// Returns the ConfigMaps that would contain the modules of files.
fn file_policies(modules: &[Module], config: &RegoConfig) -> Vec<ConfigMap> {
    let Some(namespace) = config.namespaces.first() else {
        return Vec::new();
    };
    let label = config
        .label
        .iter()
        .map(|(key, value)| (key.as_ref(), value.as_ref()));
    let labels: Labels = label.collect();
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
    /// ConfigMaps with the index of their document.
    config_maps: Vec<(usize, ConfigMap)>,
    workloads: Vec<Workload>,
    /// All objects, for replication.
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
                    return Err(wrong(
                        "a cluster has only one RolegateConfig: remove the duplicate".into(),
                    ));
                }
                let config = RuleConfig::try_from(&config);
                self.config = Some(config.map_err(|error| wrong(error.to_string()))?);
            }
            ("", "Namespace") => {
                let name = name.ok_or_else(|| wrong("metadata.name is missing".into()))?;
                // Adds the name label, as the API server does.
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
                // Sets the namespace `default`, as kubectl does.
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

    /// Derives the modes of layers from the documents.
    fn modes(&self, flags: &RuleConfig, has_modules: bool) -> Modes {
        let on = |yes: bool, flag: Mode| if yes { Mode::Enforce } else { flag };
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
        Modes::from_fn(|layer| match layer {
            LayerId::Namespace => on(annotated || !others, Mode::Off),
            LayerId::Grants => on(!self.grants.is_empty(), flags.modes[layer]),
            LayerId::Rego => on(policies, flags.modes[layer]),
        })
    }

    fn assume_namespaces(&mut self, assumed: &mut Vec<String>) {
        let mentioned = std::mem::take(&mut self.mentioned);
        let of_config_maps = std::mem::take(&mut self.of_config_maps);
        for name in mentioned.union(&of_config_maps) {
            if self.namespaces.contains_key(name) {
                continue;
            }
            let labels = [("kubernetes.io/metadata.name", name.as_str())];
            // A namespace with nothing but ConfigMaps has no pods to decide for.
            if mentioned.contains(name) {
                assumed.push(format!(
                    "namespace {} not found: assuming that it has no labels and neither \
                     {ALLOWED_ROLES} nor {PERMITTED}",
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

/// Replaces null with an empty string in maps of strings, as the API server does.
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

/// Returns true if a document is of this kind. Documents do not contain the plural, so it is
/// derived as for Kubernetes' own kinds.
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
        .take(MAX_NAME_BYTES)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

/// Describes the modes of all layers: `namespace is enforce, grants off, rego off`.
fn described(modes: Modes) -> String {
    let mut text = String::new();
    for (place, (layer, mode)) in modes.iter().enumerate() {
        let (before, is) = if place == 0 { ("", " is") } else { (", ", "") };
        text += &format!("{before}{layer}{is} {}", mode.as_str());
    }
    text
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
        let rules = offline.writer.rules().load().rules.clone();
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
        assert_eq!(offline.workloads[0].role_request.role.as_deref(), Some(""));
    }

    #[test]
    fn malformed_documents_are_reported_with_their_index() {
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
                "annotations": {"rolegate.dev/enforcement-points": "admission,agent"},
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
