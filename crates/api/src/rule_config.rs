//! A `RolegateConfig` turned into the configuration that decisions are made by, or into what is wrong
//! with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::annotation::normalized;
use rolegate_core::arn::{BaseArn, resolve};
use rolegate_core::attribution::is_tag;
use rolegate_core::config::{
    Audience, Modes, RegoConfig, ResourceKind, RuleConfig, Subjects, TemplateKind, presets,
};
use rolegate_core::decision::OwnRole;
use rolegate_core::layer::Mode;
use rolegate_core::pattern::PatternFormat;

use crate::CONFIG_NAME;
use crate::rolegate_config::{
    LayerMode, Layers, NamespaceDefault, Rego, RestrictionFormat, RolegateConfig,
    RolegateConfigSpec, WorkloadKind, Writers,
};

/// Why a configuration can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {advice}")]
pub struct ConfigError {
    /// Where: the path of the field, such as `spec.rego.label`.
    pub field: String,
    /// What is wrong with it, and what to write instead.
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

    /// What isn't given is as in [`RuleConfig::default`].
    fn try_from(object: &RolegateConfig) -> Result<Self, ConfigError> {
        if object.metadata.name.as_deref() != Some(CONFIG_NAME) {
            return Err(ConfigError::new(
                "metadata.name",
                format!("there is one RolegateConfig, and its name is {CONFIG_NAME}"),
            ));
        }
        let spec = &object.spec;
        let unless_given = Self::default();
        let base = spec.base_role_arn.as_deref().map(normalized);
        let base = base.map(BaseArn::parse);
        let base = base
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
            own_roles: own_roles(&spec.own_roles)?,
            modes: modes(spec.layers.as_ref()),
            restriction_format: match spec.namespace_restriction_format {
                Some(RestrictionFormat::Regexp) => PatternFormat::Regexp,
                Some(RestrictionFormat::Glob) | None => PatternFormat::Glob,
            },
            allow_unannotated: spec.namespace_restrictions_default == Some(NamespaceDefault::Allow),
            spared_namespaces: match &spec.spared_namespaces {
                Some(names) => shared(names),
                None => unless_given.spared_namespaces,
            },
            namespace_writers: writers(&spec.namespace_writers),
            rule_writers: writers(&spec.rule_writers),
            rego: spec
                .rego
                .as_ref()
                .map_or_else(|| Ok(RegoConfig::default()), rego)?,
            cluster: cluster.map(Into::into),
            attribution: unless_given
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
    let unless_given = Modes::default();
    let Some(layers) = layers else {
        return unless_given;
    };
    Modes {
        namespace: layers.namespace.map_or(unless_given.namespace, Into::into),
        grants: layers.grants.map_or(unless_given.grants, Into::into),
        rego: layers.rego.map_or(unless_given.rego, Into::into),
    }
}

/// The default role is completed later, by a base that may not be known yet; here it is seen
/// whether any could.
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
    let any = BaseArn::of_account("aws", "000000000000").map_err(wrong)?;
    resolve(role, Some(base.unwrap_or(&any))).map_err(wrong)?;
    Ok(Some(role.into()))
}

fn own_roles(roles: &[String]) -> Result<Vec<OwnRole>, ConfigError> {
    let roles = roles.iter().enumerate().map(|(place, role)| {
        OwnRole::parse(normalized(role))
            .map_err(|error| ConfigError::new(format!("spec.ownRoles[{place}]"), error.to_string()))
    });
    roles.collect()
}

/// STS takes it as the value of a session tag.
fn check_cluster_name(name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || !is_tag("eks-cluster-name", name) {
        return Err(ConfigError::new(
            "spec.clusterName",
            "it goes to STS as a session tag, which takes 1 to 256 letters, digits, blanks and \
             _.:/=+-@",
        ));
    }
    Ok(())
}

fn rego(rego: &Rego) -> Result<RegoConfig, ConfigError> {
    let unless_given = RegoConfig::default();
    let label = match rego.label.as_deref().map(normalized) {
        None => unless_given.label,
        Some("") => None,
        Some(text) => Some(label(text)?),
    };
    Ok(RegoConfig {
        namespaces: match &rego.namespaces {
            Some(names) => shared(names),
            None => unless_given.namespaces,
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
    match ResourceKind::in_ones_place(&kinds) {
        None => Ok(kinds),
        Some(place) => Err(ConfigError::new(
            format!("{FIELD}[{place}]"),
            "another kind has this plural, which is all that names it in data.kubernetes: leave one out",
        )),
    }
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
            } => all.extend(presets::preset(normalized(name)).ok_or_else(|| {
                let known: Vec<_> = presets::names().collect();
                ConfigError::new(
                    format!("{field}.preset"),
                    format!(
                        "there is no such preset: take one of {}, or describe the kind by group, \
                         kind, resource and paths",
                        known.join(", ")
                    ),
                )
            })?),
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
                all.push(TemplateKind {
                    group: normalized(group).into(),
                    kind: normalized(kind).into(),
                    resource: normalized(resource).into(),
                    paths: template_paths(&format!("{field}.paths"), paths.as_deref())?,
                    metadata: template_paths(
                        &format!("{field}.metadataPaths"),
                        metadata_paths.as_deref(),
                    )?,
                });
            }
            _ => {
                return Err(ConfigError::new(
                    field,
                    "give either preset alone, or group, kind, resource and paths",
                ));
            }
        }
    }
    Ok(all)
}

fn template_paths(field: &str, paths: Option<&[String]>) -> Result<Vec<Arc<str>>, ConfigError> {
    let paths = paths.unwrap_or_default().iter().map(|path| {
        let path = normalized(path);
        is_path(path).then(|| path.into()).ok_or_else(|| {
            ConfigError::new(
                field,
                format!(
                    "{path:?} is no path: write names of fields with dots between, such as \
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
