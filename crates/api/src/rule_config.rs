//! Conversion of a `RolegateConfig` into the configuration that decisions use, with validation.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::annotation::normalized;
use rolegate_core::arn::{BaseArn, resolve};
use rolegate_core::attribution::is_tag;
use rolegate_core::config::{
    Audience, Modes, RegoConfig, ResourceKind, RuleConfig, Subjects, TemplateKind, presets,
};
use rolegate_core::decision::ReservedRole;
use rolegate_core::layer::Mode;
use rolegate_core::pattern::PatternFormat;

use crate::CONFIG_NAME;
use crate::rolegate_config::{
    LayerMode, Layers, NamespaceDefault, Rego, RestrictionFormat, RolegateConfig,
    RolegateConfigSpec, WorkloadKind, Writers,
};

/// An invalid field of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {advice}")]
pub struct ConfigError {
    /// Path of the field, such as `spec.rego.label`.
    pub field: String,
    /// Description of the error and its correction.
    pub advice: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            advice: advice.into(),
        }
    }
}

impl TryFrom<&RolegateConfig> for RuleConfig {
    type Error = ConfigError;

    /// Unset fields take the values of [`RuleConfig::default`].
    fn try_from(object: &RolegateConfig) -> Result<Self, ConfigError> {
        if object.metadata.name.as_deref() != Some(CONFIG_NAME) {
            return Err(ConfigError::new(
                "metadata.name",
                format!("the only RolegateConfig of a cluster must be named {CONFIG_NAME}"),
            ));
        }
        let spec = &object.spec;
        let defaults = Self::default();
        check_namespaces(
            "spec.exemptNamespaces",
            spec.exempt_namespaces.as_deref().unwrap_or_default(),
        )?;
        let base = spec
            .base_role_arn
            .as_deref()
            .map(normalized)
            .map(BaseArn::parse)
            .transpose()
            .map_err(|error| ConfigError::new("spec.baseRoleArn", error.to_string()))?;
        let cluster = spec.cluster_name.as_deref().map(normalized);
        if let Some(cluster) = cluster {
            check_cluster_name(cluster)?;
        }
        let writers = |writers: &Option<Writers>| writers.as_ref().map(Subjects::from);
        Ok(Self {
            generation: object.metadata.generation,
            default_role: default_role(spec, base.as_ref())?,
            base,
            reserved_roles: reserved_roles(&spec.reserved_roles)?,
            modes: modes(spec.layers.as_ref()),
            restriction_format: match spec.namespace_restriction_format {
                Some(RestrictionFormat::Regexp) => PatternFormat::Regexp,
                Some(RestrictionFormat::Glob) | None => PatternFormat::Glob,
            },
            allow_unannotated: spec.namespace_restrictions_default == Some(NamespaceDefault::Allow),
            exempt_namespaces: match &spec.exempt_namespaces {
                Some(names) => shared(names),
                None => defaults.exempt_namespaces,
            },
            namespace_writers: writers(&spec.namespace_writers),
            rule_writers: writers(&spec.rule_writers),
            rego: spec
                .rego
                .as_ref()
                .map_or_else(|| Ok(RegoConfig::default()), rego)?,
            cluster: cluster.map(Into::into),
            attribution: defaults
                .attribution
                .with(spec.session.unwrap_or_default().into()),
            templates: templates(&spec.workload_kinds)?,
            guard_scheduling: spec.guard_scheduling,
            web_identity_audiences: spec
                .web_identity_audiences
                .iter()
                .map(|audience| Audience::new(audience))
                .collect(),
        })
    }
}

impl From<&Writers> for Subjects {
    fn from(writers: &Writers) -> Self {
        Self {
            users: shared(&writers.users),
            groups: shared(&writers.groups),
        }
    }
}

impl From<LayerMode> for Mode {
    fn from(mode: LayerMode) -> Self {
        match mode {
            LayerMode::Enforce => Self::Enforce,
            LayerMode::Audit => Self::Audit,
            LayerMode::Off => Self::Off,
        }
    }
}

impl From<Mode> for LayerMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::Audit => Self::Audit,
            Mode::Off => Self::Off,
        }
    }
}

fn shared(names: &[String]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| normalized(name).into()).collect()
}

fn modes(layers: Option<&Layers>) -> Modes {
    let defaults = Modes::default();
    let Some(layers) = layers else {
        return defaults;
    };
    Modes::from_fn(|layer| layers.get(layer).map_or(defaults[layer], Into::into))
}

/// Validates the default role against a placeholder base ARN if the real one is not known yet. The
/// name is completed later.
fn default_role(
    spec: &RolegateConfigSpec,
    base: Option<&BaseArn>,
) -> Result<Option<Arc<str>>, ConfigError> {
    let Some(role) = spec.default_role.as_deref().map(normalized) else {
        return Ok(None);
    };
    let wrong = |error: rolegate_core::arn::ArnError| {
        ConfigError::new("spec.defaultRole", error.to_string())
    };
    let any = BaseArn::from_account("aws", "000000000000").map_err(wrong)?;
    resolve(role, Some(base.unwrap_or(&any))).map_err(wrong)?;
    Ok(Some(role.into()))
}

fn reserved_roles(roles: &[String]) -> Result<Vec<ReservedRole>, ConfigError> {
    let roles = roles.iter().enumerate().map(|(place, role)| {
        ReservedRole::parse(normalized(role)).map_err(|error| {
            ConfigError::new(format!("spec.reservedRoles[{place}]"), error.to_string())
        })
    });
    roles.collect()
}

/// The name becomes the value of a session tag, so STS's limits apply.
fn check_cluster_name(name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || !is_tag("eks-cluster-name", name) {
        return Err(ConfigError::new(
            "spec.clusterName",
            "must be a valid session tag value: 1 to 256 letters, digits, blanks and _.:/=+-@",
        ));
    }
    Ok(())
}

fn rego(rego: &Rego) -> Result<RegoConfig, ConfigError> {
    let defaults = RegoConfig::default();
    let label = match rego.label.as_deref().map(normalized) {
        None => defaults.label,
        Some("") => None,
        Some(text) => Some(label(text)?),
    };
    check_namespaces(
        "spec.rego.namespaces",
        rego.namespaces.as_deref().unwrap_or_default(),
    )?;
    Ok(RegoConfig {
        namespaces: match &rego.namespaces {
            Some(names) => shared(names),
            None => defaults.namespaces,
        },
        label,
        replicate: replicate(&rego.replicate)?,
        resources: kinds("spec.rego.resources", &rego.resources)?,
        required: rego
            .required
            .iter()
            .map(|one| {
                (
                    normalized(&one.namespace).into(),
                    normalized(&one.name).into(),
                )
            })
            .collect(),
        wrap_pods: rego.wrap_pods,
    })
}

fn label(text: &str) -> Result<(Arc<str>, Arc<str>), ConfigError> {
    let pair = text.split_once('=').filter(|(key, value)| {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        !key.is_empty() && key.chars().chain(value.chars()).all(fine)
    });
    let (key, value) = pair.ok_or_else(|| {
        ConfigError::new(
            "spec.rego.label",
            "write it as KEY=VALUE, such as openpolicyagent.org/policy=rego, or \"\" for every \
             ConfigMap",
        )
    })?;
    Ok((key.into(), value.into()))
}

fn kinds(field: &str, texts: &[String]) -> Result<Vec<ResourceKind>, ConfigError> {
    let kinds = texts.iter().enumerate().map(|(place, text)| {
        ResourceKind::parse(normalized(text)).ok_or_else(|| {
            ConfigError::new(
                format!("{field}[{place}]"),
                "write it as [GROUP/]VERSION/RESOURCE with the plural in lower case, such as \
                 v1/services or networking.k8s.io/v1/ingresses",
            )
        })
    });
    kinds.collect()
}

fn replicate(texts: &[String]) -> Result<Vec<ResourceKind>, ConfigError> {
    const FIELD: &str = "spec.rego.replicate";
    let kinds = kinds(FIELD, texts)?;
    match ResourceKind::first_plural_conflict(&kinds) {
        None => Ok(kinds),
        Some(place) => Err(ConfigError::new(
            format!("{FIELD}[{place}]"),
            "another kind has the same plural, and data.kubernetes is keyed by plural: remove one",
        )),
    }
}

/// Validates namespace names. The webhook configuration contains them as label values, so the API
/// server would reject the whole configuration for an invalid one.
fn check_namespaces(field: &str, names: &[String]) -> Result<(), ConfigError> {
    let wrong = names
        .iter()
        .position(|name| !is_dns_label(normalized(name)));
    wrong.map_or(Ok(()), |place| {
        Err(ConfigError::new(
            format!("{field}[{place}]"),
            "not a valid namespace name: use up to 63 lower-case letters, digits and -",
        ))
    })
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric)
        && bytes.iter().all(|b| is_alphanumeric(b) || *b == b'-')
}

/// Returns true if a text is the name of an API group: a DNS subdomain, or empty for the core group.
fn is_group(text: &str) -> bool {
    text.is_empty() || (text.len() <= 253 && text.split('.').all(is_dns_label))
}

/// Validates the group and plural of each kind, and that no earlier entry has the same ones, since
/// they name a webhook of the webhook configuration.
fn check_kinds(kinds: &[(usize, TemplateKind)]) -> Result<(), ConfigError> {
    for (at, (place, kind)) in kinds.iter().enumerate() {
        let error = |advice: String| {
            Err(ConfigError::new(
                format!("spec.workloadKinds[{place}]"),
                advice,
            ))
        };
        if !is_group(&kind.group) {
            return error(format!("{:?} is not the name of an API group", kind.group));
        }
        if !is_dns_label(&kind.resource) {
            return error(format!(
                "{:?} is not the plural name of a kind in lower case, such as rollouts",
                kind.resource
            ));
        }
        let same = |(_, other): &&(usize, TemplateKind)| {
            (&other.group, &other.resource) == (&kind.group, &kind.resource)
        };
        if let Some((first, _)) = kinds.iter().take(at).find(same) {
            return error(format!(
                "spec.workloadKinds[{first}] already describes {} of {}: remove one",
                kind.resource, kind.group
            ));
        }
    }
    Ok(())
}

fn templates(kinds: &[WorkloadKind]) -> Result<Vec<TemplateKind>, ConfigError> {
    let mut all = Vec::new();
    for (place, kind) in kinds.iter().enumerate() {
        let field = format!("spec.workloadKinds[{place}]");
        match kind {
            WorkloadKind {
                preset: Some(name),
                group: None,
                kind: None,
                resource: None,
                paths: None,
                metadata_paths: None,
            } => all.extend(preset_kinds(place, &field, name)?),
            WorkloadKind {
                preset: None,
                group: Some(group),
                kind: Some(kind),
                resource: Some(resource),
                paths,
                metadata_paths,
            } if paths
                .iter()
                .chain(metadata_paths)
                .any(|paths| !paths.is_empty()) =>
            {
                all.push((
                    place,
                    TemplateKind {
                        group: normalized(group).into(),
                        kind: normalized(kind).into(),
                        resource: normalized(resource).into(),
                        paths: template_paths(&format!("{field}.paths"), paths.as_deref())?,
                        metadata: template_paths(
                            &format!("{field}.metadataPaths"),
                            metadata_paths.as_deref(),
                        )?,
                    },
                ));
            }
            _ => {
                return Err(ConfigError::new(
                    field,
                    "set either preset alone, or group, kind, resource and paths",
                ));
            }
        }
    }
    check_kinds(&all)?;
    Ok(all.into_iter().map(|(_, kind)| kind).collect())
}

/// Returns the kinds of a preset, with the index of its entry.
fn preset_kinds(
    place: usize,
    field: &str,
    name: &str,
) -> Result<impl Iterator<Item = (usize, TemplateKind)>, ConfigError> {
    let kinds = presets::preset(normalized(name)).ok_or_else(|| {
        let known: Vec<_> = presets::names().collect();
        ConfigError::new(
            format!("{field}.preset"),
            format!(
                "unknown preset: use one of {}, or describe the kind by group, kind, resource and \
                 paths",
                known.join(", ")
            ),
        )
    })?;
    Ok(kinds.into_iter().map(move |kind| (place, kind)))
}

fn template_paths(field: &str, paths: Option<&[String]>) -> Result<Vec<Arc<str>>, ConfigError> {
    let paths = paths.unwrap_or_default().iter().map(|path| {
        let path = normalized(path);
        is_path(path).then(|| path.into()).ok_or_else(|| {
            ConfigError::new(
                field,
                format!(
                    "{path:?} is not a path: write names of fields with dots between, such as \
                     spec.template"
                ),
            )
        })
    });
    paths.collect()
}

fn is_path(text: &str) -> bool {
    let step = |step: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        step == "*" || (!step.is_empty() && step.bytes().all(fine))
    };
    text == "." || (text.len() <= 253 && text.split('.').all(step))
}
