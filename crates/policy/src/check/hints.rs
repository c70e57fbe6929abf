//! Warnings about parts of a manifest that admission does not validate, or that have no effect
//! there.

use rolegate_core::annotation::{
    AnnotationKeys, DEFAULT_ROLE, PERMITTED, SESSION_NAME, WEB_IDENTITY_ROLE,
};
use rolegate_core::config::{RuleConfig, TemplateKind, presets};
use rolegate_core::template_kinds::{BUILTIN_TEMPLATE_KINDS, BuiltinTemplateKind};
use rolegate_report::findings::Level;
use serde_json::Value;

/// A finding about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) level: Level,
    /// The path of the field.
    pub(super) steps: Vec<String>,
    pub(super) rule: &'static str,
    pub(super) message: String,
}

/// Kinds of the core group, other than those with a pod template, that create pods or define roles and
/// rules.
const CORE_KINDS: &[&str] = &["Pod", "Namespace", "ServiceAccount", "ConfigMap", "Service"];
/// The `apiVersion` of those kinds.
const CORE_VERSION: &str = "v1";
/// Groups of objects that are rules for other programs, with advice for each.
const FOREIGN: &[(&str, &str)] = &[
    (
        "templates.gatekeeper.sh",
        "rolegate does not evaluate Gatekeeper's templates: write their Rego as a deny rule of package \
         kubernetes.admission in a ConfigMap",
    ),
    (
        "constraints.gatekeeper.sh",
        "rolegate does not evaluate Gatekeeper's constraints: write the template's Rego as a deny rule of \
         package kubernetes.admission in a ConfigMap",
    ),
    (
        "kyverno.io",
        "rolegate does not evaluate Kyverno's policies",
    ),
    (
        "kustomize.config.k8s.io",
        "a kustomization is not an object: check its output, as in kubectl kustomize DIR | \
         rolegate policy check -f -",
    ),
];
/// Groups with a dot whose objects do not create pods: Kubernetes' own, and rolegate's.
const GROUPS: &[&str] = &[
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "metrics.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "rolegate.dev",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];
/// Maximum number of parts to examine in an object.
const MAX_PARTS: usize = 200_000;
/// The rule of findings about parts that are not validated.
const NOT_VALIDATED: &str = "not validated";
/// The rule of findings about parts without effect.
const NO_EFFECT: &str = "no effect";

/// Returns the reason why an object of a group for another program has no effect here.
pub fn foreign(object: &Value) -> Option<&'static str> {
    let group = group(object);
    let mut known = FOREIGN.iter();
    known
        .find(|(known, _)| *known == group)
        .map(|(_, why)| *why)
}

/// Returns findings about an object in `namespace`, in addition to admission's verdict.
pub(super) fn hints(
    object: &Value,
    namespace: &str,
    config: &RuleConfig,
    keys: &AnnotationKeys,
) -> Vec<Hint> {
    if let Some(why) = foreign(object) {
        return vec![hint(Level::Note, &[], NOT_VALIDATED, why.to_owned())];
    }
    if let Some(found) = misnamed(object) {
        return vec![found];
    }
    let place = Places::of(object, config);
    if matches!(place, Places::Unknown)
        && let Some(found) = unknown_pods(object, keys)
    {
        return vec![found];
    }
    let mut found = annotations(object, &place, keys);
    let makes_pods = matches!(place, Places::Itself | Places::Metadata(_));
    if makes_pods && config.exempt_namespaces.contains(namespace) {
        let message = format!("namespace {namespace} is exempt: admission validates nothing in it");
        found.push(hint(
            Level::Note,
            &["metadata", "namespace"],
            NOT_VALIDATED,
            message,
        ));
    }
    found
}

fn hint(level: Level, steps: &[&str], rule: &'static str, message: String) -> Hint {
    Hint {
        level,
        steps: steps.iter().map(|step| (*step).to_owned()).collect(),
        rule,
        message,
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn group(object: &Value) -> &str {
    let version = text(object, "apiVersion");
    version.split_once('/').map_or("", |(group, _)| group)
}

/// Returns a finding for a misspelled kind that no API server knows.
fn misnamed(object: &Value) -> Option<Hint> {
    let (kind, group) = (text(object, "kind"), group(object));
    // Other groups have kinds with the same names.
    if group.contains('.') {
        return None;
    }
    let plural = kind.strip_suffix(['s', 'S']).unwrap_or(kind);
    let templates = BUILTIN_TEMPLATE_KINDS
        .iter()
        .map(|known| (known.group, known.kind, known.api_version()));
    let others = CORE_KINDS.iter();
    let mut all = templates.chain(others.map(|known| ("", *known, CORE_VERSION.to_owned())));
    let (known_group, known, version) = all.find(|(_, known, _)| {
        known.eq_ignore_ascii_case(kind) || known.eq_ignore_ascii_case(plural)
    })?;
    if known != kind {
        let message =
            format!("no API server knows the kind {kind}, so it was not validated: write {known}");
        return Some(hint(Level::Warning, &["kind"], NOT_VALIDATED, message));
    }
    (known_group != group).then(|| {
        let given = text(object, "apiVersion");
        let message = format!(
            "{kind} of {given} was not validated, and current clusters do not serve it: write \
             apiVersion: {version}"
        );
        hint(Level::Warning, &["apiVersion"], NOT_VALIDATED, message)
    })
}

/// The source of the metadata of an object's pods.
enum Places<'a> {
    /// The object is a pod, or its metadata is that of its pods.
    Itself,
    /// Metadata at these paths, of templates or alone. `*` matches every entry.
    Metadata(Vec<Vec<&'a str>>),
    /// None: it does not create pods.
    None,
    /// A kind for which admission is not configured.
    Unknown,
}

impl<'a> Places<'a> {
    fn of(object: &Value, config: &'a RuleConfig) -> Self {
        let (kind, group) = (text(object, "kind"), group(object));
        match (group, kind) {
            ("", "Pod") => return Self::Itself,
            ("", kind) if CORE_KINDS.contains(&kind) => return Self::None,
            _ => {}
        }
        if let Some(builtin) = BuiltinTemplateKind::find(group, kind) {
            return Self::Metadata(vec![metadata_of(builtin.path.iter().copied())]);
        }
        let mut custom = config.templates.iter();
        match custom.find(|known| *known.group == *group && *known.kind == *kind) {
            Some(kind) => Self::custom(kind),
            None if is_kubernetes(group) => Self::None,
            None => Self::Unknown,
        }
    }

    fn custom(kind: &'a TemplateKind) -> Self {
        if kind.paths.iter().any(|path| &**path == ".") {
            return Self::Itself;
        }
        let templates = kind.paths.iter().map(|path| metadata_of(path.split('.')));
        let alone = kind.metadata.iter().map(|path| path.split('.').collect());
        Self::Metadata(templates.chain(alone).collect())
    }

    /// Returns whether annotations at this path are those of pods.
    fn are_of_pods(&self, steps: &[String]) -> bool {
        let is_at = |place: &[&str]| {
            let full = place.iter().chain(&["annotations"]);
            full.clone().count() == steps.len()
                && full
                    .zip(steps)
                    .all(|(one, step)| *one == "*" || one == step)
        };
        match self {
            Self::Itself => is_at(&["metadata"]),
            Self::Metadata(places) => places.iter().any(|place| is_at(place)),
            Self::None | Self::Unknown => false,
        }
    }

    /// Returns the path at which pods' annotations belong, for messages.
    fn advice(&self) -> String {
        match self {
            Self::Itself => "write it into metadata.annotations".into(),
            Self::Metadata(places) => {
                let places: Vec<_> = places
                    .iter()
                    .map(|place| format!("{}.annotations", place.join(".")))
                    .collect();
                format!(
                    "pods have the annotations of their template: write it into {}",
                    places.join(" or ")
                )
            }
            Self::None | Self::Unknown => "it belongs on pods and pod templates".into(),
        }
    }
}

/// Returns the metadata of a template.
fn metadata_of<'a>(template: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    template.chain(["metadata"]).collect()
}

/// Returns whether a group belongs to Kubernetes or rolegate. Groups of others may end in `.k8s.io`
/// too.
fn is_kubernetes(group: &str) -> bool {
    !group.contains('.') || GROUPS.contains(&group)
}

/// Returns a finding for an object of a kind that is not in `workloadKinds` but seems to create
/// pods.
fn unknown_pods(object: &Value, keys: &AnnotationKeys) -> Option<Hint> {
    let mut found = None;
    let mut parts = 0;
    let mut at = |steps: &[String], value: &Value| {
        parts += 1;
        if found.is_none() && !steps.is_empty() && makes_pods(steps, value, keys) {
            found = Some(steps.to_vec());
        }
        parts < MAX_PARTS && found.is_none()
    };
    walk(object, &mut Vec::new(), &mut at);
    let (kind, group) = (text(object, "kind"), group(object));
    let steps = found?;
    let preset = presets::names().find(|name| {
        let kinds = presets::preset(name).unwrap_or_default();
        kinds
            .iter()
            .any(|known| *known.group == *group && *known.kind == *kind)
    });
    let what = match preset {
        Some(preset) => format!("write {{ preset: {preset} }} into workloadKinds"),
        None => "name the kind in workloadKinds".into(),
    };
    let message = format!(
        "{kind} of {group} seems to create pods, but was not validated: its pods are validated \
         when they are created; {what} of the RolegateConfig"
    );
    Some(Hint {
        level: Level::Warning,
        steps,
        rule: NOT_VALIDATED,
        message,
    })
}

/// Returns whether a part of a custom resource is a pod template.
fn makes_pods(steps: &[String], value: &Value, keys: &AnnotationKeys) -> bool {
    let name = steps.last().map_or("", String::as_str);
    let image = |value: &Value| value.get("image").is_some_and(Value::is_string);
    match (name, value) {
        ("containers" | "initContainers", Value::Array(containers)) => containers
            .iter()
            .any(|one| image(one) || one.get("name").is_some_and(Value::is_string)),
        (
            "podTemplate"
            | "podSpec"
            | "podMetadata"
            | "podTemplateSpec"
            | "podTemplateOverrides"
            | "podSpecOverrides",
            value,
        ) => value.is_object() || value.is_array(),
        ("serviceAccountName" | "serviceAccount", Value::String(_)) => true,
        ("metadata", _) if steps.len() == 1 => false,
        (_, Value::Object(fields)) => {
            let others = [
                "command",
                "args",
                "env",
                "envFrom",
                "imagePullPolicy",
                "mainApplicationFile",
                "numNodes",
                "resources",
                "resourcesPerNode",
                "volumeMounts",
            ];
            let runs = name == "container" || others.iter().any(|one| fields.contains_key(*one));
            let annotated = name == "annotations"
                && steps.len() > 2
                && pod_keys(keys).iter().any(|key| fields.contains_key(*key));
            (image(value) && runs) || annotated
        }
        _ => false,
    }
}

/// Calls `at` for every part of a value, until it returns false.
fn walk(
    value: &Value,
    steps: &mut Vec<String>,
    at: &mut impl FnMut(&[String], &Value) -> bool,
) -> bool {
    if !at(steps, value) {
        return false;
    }
    let mut into = |step: String, part: &Value| {
        steps.push(step);
        let goes_on = walk(part, steps, at);
        steps.pop();
        goes_on
    };
    match value {
        Value::Object(fields) => fields.iter().all(|(name, part)| into(name.clone(), part)),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.all(|(place, part)| into(place.to_string(), part))
        }
        _ => true,
    }
}

fn pod_keys(keys: &AnnotationKeys) -> [&str; 3] {
    [&keys.role, &keys.external_id, SESSION_NAME]
}

/// Returns findings for rolegate's annotations without effect at their path.
fn annotations(object: &Value, place: &Places<'_>, keys: &AnnotationKeys) -> Vec<Hint> {
    let (kind, group) = (text(object, "kind"), group(object));
    let is = |known: &str| group.is_empty() && kind == known;
    let own = |steps: &[String]| steps == ["metadata", "annotations"];
    let namespace_keys = [&*keys.allowed_roles, PERMITTED, DEFAULT_ROLE];
    let (mut found, mut of_pods) = (Vec::new(), Vec::new());
    let mut parts = 0;
    let mut at = |steps: &[String], value: &Value| {
        parts += 1;
        let Value::Object(fields) = value else {
            return parts < MAX_PARTS;
        };
        let mut add = |key: &str, advice: String| {
            found.push((steps.to_vec(), key.to_owned(), advice));
        };
        for key in pod_keys(keys) {
            if !fields.contains_key(key) {
            } else if place.are_of_pods(steps) {
                of_pods.push(key.to_owned());
            } else {
                add(key, place.advice());
            }
        }
        for key in namespace_keys {
            if fields.contains_key(key) && !(is("Namespace") && own(steps)) {
                add(
                    key,
                    "it belongs in metadata.annotations of a Namespace".into(),
                );
            }
        }
        if fields.contains_key(WEB_IDENTITY_ROLE) && !(is("ServiceAccount") && own(steps)) {
            let advice = "it belongs in metadata.annotations of a ServiceAccount";
            add(WEB_IDENTITY_ROLE, advice.into());
        }
        parts < MAX_PARTS
    };
    walk(object, &mut Vec::new(), &mut at);
    found
        .into_iter()
        // If both the template and the owner have it, the one on the template applies.
        .filter(|(steps, key, _)| !(own(steps) && of_pods.contains(key)))
        .map(|(mut steps, key, advice)| {
            let message = format!("{key} has no effect here: {advice}");
            steps.push(key);
            Hint {
                level: Level::Warning,
                steps,
                rule: NO_EFFECT,
                message,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
