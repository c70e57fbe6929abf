//! Flags about rules, shared by every command that decides, so that the same flags give the same
//! decision. They apply where the cluster has no `RolegateConfig`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use rolegate_core::annotation::{given, normalized};
use rolegate_core::arn::{BaseArn, resolve};
use rolegate_core::config::{Modes, POLICY_LABEL, RegoConfig, ResourceKind, RuleConfig};
use rolegate_core::decision::ReservedRole;
use rolegate_core::layer::{LayerId, Mode};

use crate::flags::given_fields::GivenFields;
use crate::flags::{ClusterConfigUse, RestrictionFormat, base_arn, invalid};

const RULES: &str = "Roles and rules";

/// The default for namespaces without annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RestrictionDefault {
    /// Allow no role
    Deny,
    /// Allow every role, as without restrictions. Meant for migrations
    Allow,
}

/// Flags about rules.
#[derive(Debug, Clone, Args)]
pub(crate) struct RuleFlags {
    /// ARN prefix that completes bare role names, such as arn:aws:iam::123456789012:role/k8s/
    #[arg(long, alias = "role-base-arn", value_name = "ARN", env = "ROLEGATE_BASE_ROLE_ARN", help_heading = RULES)]
    base_role_arn: Option<String>,
    /// Use of the cluster's RolegateConfig, which overrides the flags about roles and rules. auto: use it if its custom resource definition is installed
    #[arg(long, value_name = "USE", env = "ROLEGATE_CLUSTER_CONFIG", default_value = "auto", help_heading = RULES)]
    pub(crate) cluster_config: ClusterConfigUse,
    /// Role of pods that do not request one, in namespaces without a default of their own
    #[arg(long, value_name = "ROLE", env = "ROLEGATE_DEFAULT_ROLE", help_heading = RULES)]
    default_role: Option<String>,
    /// Role that no pod may have, such as the nodes' role, as a name or an ARN. Applies in addition to the roles reserved by the RolegateConfig. Values from all sources are combined
    #[arg(long, value_name = "ROLE", env = "ROLEGATE_RESERVED_ROLE", value_delimiter = ',', help_heading = RULES)]
    reserved_role: Vec<String>,
    /// Allow only roles that the annotations of the pod's namespace allow. The same as --layer=namespace=enforce
    #[arg(long, env = "ROLEGATE_NAMESPACE_RESTRICTIONS", help_heading = RULES)]
    pub(crate) namespace_restrictions: bool,
    /// Format of the role patterns in the annotation of --namespace-key
    #[arg(long, value_name = "FORMAT", env = "ROLEGATE_NAMESPACE_RESTRICTION_FORMAT", default_value = "glob", ignore_case = true, help_heading = RULES)]
    namespace_restriction_format: RestrictionFormat,
    /// Verdict for namespaces without annotations about roles
    #[arg(long, value_name = "VERDICT", env = "ROLEGATE_NAMESPACE_RESTRICTIONS_DEFAULT", default_value = "deny", help_heading = RULES)]
    namespace_restrictions_default: RestrictionDefault,
    /// Layer of rules and its mode, such as grants=audit. The layers are namespace, grants and rego. The modes are enforce, audit and off. A layer that is not set is off. Values from all sources are combined. A source may not make a layer less strict than a source of lower precedence
    #[arg(long, value_name = "NAME=MODE", env = "ROLEGATE_LAYER", value_delimiter = ',', help_heading = RULES)]
    layer: Vec<LayerMode>,
    /// Namespaces whose ConfigMaps hold Rego policies and data. Values from all sources are combined
    #[arg(long, value_name = "NAMESPACE", env = "ROLEGATE_POLICY_NAMESPACES", value_delimiter = ',', default_value = "opa", help_heading = RULES)]
    policy_namespaces: Vec<String>,
    /// Label of ConfigMaps that hold Rego policies. Empty: all ConfigMaps of those namespaces
    #[arg(long, value_name = "KEY=VALUE", env = "ROLEGATE_POLICY_LABEL", default_value = "openpolicyagent.org/policy=rego", help_heading = RULES)]
    policy_label: String,
    /// Kinds that Rego policies can read at data.kubernetes in addition to namespaces, as [GROUP/]VERSION/RESOURCE. Values from all sources are combined
    #[arg(long, value_name = "KIND", env = "ROLEGATE_REPLICATE", value_delimiter = ',', help_heading = RULES)]
    replicate: Vec<String>,
}

/// One layer and its mode.
#[derive(Debug, Clone, Copy)]
struct LayerMode {
    layer: LayerId,
    mode: Mode,
}

impl FromStr for LayerMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "write LAYER=MODE: layers are namespace, grants and rego, modes enforce, audit and off"
                .to_owned()
        };
        let (layer, mode) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self {
            layer: LayerId::parse(layer).ok_or_else(wrong)?,
            mode: Mode::parse(mode).ok_or_else(wrong)?,
        })
    }
}

impl RuleFlags {
    /// Returns the rules that the flags describe.
    ///
    /// # Errors
    /// Returns a usage error for an invalid flag.
    pub(crate) fn config(&self) -> anyhow::Result<RuleConfig> {
        let default_role = self.default_role.as_deref().and_then(given);
        if let Some(role) = default_role {
            // A bare name may have to wait for the base ARN. Its syntax can be checked now.
            let any = BaseArn::from_account("aws", "000000000000").ok();
            resolve(role, any.as_ref())
                .map_err(|error| invalid(format!("--default-role: {error}")))?;
        }
        let reserved_roles = self.reserved_role.iter().map(|role| {
            ReservedRole::parse(normalized(role))
                .map_err(|error| invalid(format!("--reserved-role: {error}")))
        });
        Ok(RuleConfig {
            base: base_arn(self.base_role_arn.as_deref())?,
            default_role: default_role.map(Into::into),
            reserved_roles: reserved_roles.collect::<anyhow::Result<_>>()?,
            modes: self.modes(),
            rego: self.rego()?,
            restriction_format: self.namespace_restriction_format.into(),
            allow_unannotated: self.namespace_restrictions_default == RestrictionDefault::Allow,
            ..RuleConfig::default()
        })
    }

    /// Merges two sources of flags. A flag that is `given` here overrides `lower`. Reserved roles
    /// are combined, and so are the layers that are named.
    pub(crate) fn over(self, lower: Self, given: &GivenFields) -> Self {
        let mut layer = lower.layer;
        if given.has("namespace_restrictions") {
            layer.retain(|one| one.layer != LayerId::Namespace);
        }
        layer.extend(self.layer);
        let mut reserved_role = lower.reserved_role;
        reserved_role.extend(self.reserved_role);
        Self {
            cluster_config: given.pick("cluster_config", self.cluster_config, lower.cluster_config),
            base_role_arn: given.pick("base_role_arn", self.base_role_arn, lower.base_role_arn),
            default_role: given.pick("default_role", self.default_role, lower.default_role),
            reserved_role,
            namespace_restrictions: given.pick(
                "namespace_restrictions",
                self.namespace_restrictions,
                lower.namespace_restrictions,
            ),
            namespace_restriction_format: given.pick(
                "namespace_restriction_format",
                self.namespace_restriction_format,
                lower.namespace_restriction_format,
            ),
            namespace_restrictions_default: given.pick(
                "namespace_restrictions_default",
                self.namespace_restrictions_default,
                lower.namespace_restrictions_default,
            ),
            layer,
            policy_namespaces: given.pick(
                "policy_namespaces",
                self.policy_namespaces,
                lower.policy_namespaces,
            ),
            policy_label: given.pick("policy_label", self.policy_label, lower.policy_label),
            replicate: given.pick("replicate", self.replicate, lower.replicate),
        }
    }

    /// Returns the layers' modes. Without flags every layer is off, as in kube2iam.
    fn modes(&self) -> Modes {
        let mut modes = Modes::OFF;
        if self.namespace_restrictions {
            modes[LayerId::Namespace] = Mode::Enforce;
        }
        for LayerMode { layer, mode } in &self.layer {
            modes[*layer] = *mode;
        }
        modes
    }

    fn rego(&self) -> anyhow::Result<RegoConfig> {
        let label = match normalized(&self.policy_label) {
            "" => None,
            text => {
                let (key, value) = text.split_once('=').ok_or_else(|| {
                    let (key, value) = POLICY_LABEL;
                    invalid(format!(
                        "--policy-label: write KEY=VALUE, such as {key}={value}"
                    ))
                })?;
                Some((key.into(), value.into()))
            }
        };
        let replicate = self
            .replicate
            .iter()
            .map(|text| {
                ResourceKind::parse(normalized(text)).ok_or_else(|| {
                    invalid(format!(
                        "--replicate: {text:?} is not [GROUP/]VERSION/RESOURCE, such as networking.k8s.io/v1/ingresses"
                    ))
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(place) = ResourceKind::first_plural_conflict(&replicate) {
            let text = self.replicate.get(place).map_or("", |text| text);
            return Err(invalid(format!(
                "--replicate: {text:?}: another kind has the same plural, and data.kubernetes identifies kinds by their plural only"
            )));
        }
        Ok(RegoConfig {
            namespaces: self
                .policy_namespaces
                .iter()
                .map(|name| normalized(name).into())
                .collect(),
            label,
            replicate,
            ..RegoConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        rules: RuleFlags,
    }

    fn parse(arguments: &[&str]) -> Result<RuleFlags, clap::Error> {
        let arguments = std::iter::once("test").chain(arguments.iter().copied());
        Flags::try_parse_from(arguments).map(|flags| flags.rules)
    }

    #[test]
    fn layers_and_policies_by_flags() {
        let flags = parse(&[
            "--layer=grants=audit,rego=enforce",
            "--policy-namespaces=opa,rules",
            "--policy-label=",
            "--replicate=v1/services",
        ])
        .unwrap();
        let config = flags.config().unwrap();
        let (modes, rego) = (config.modes, config.rego);
        assert_eq!(
            (
                modes[LayerId::Namespace],
                modes[LayerId::Grants],
                modes[LayerId::Rego]
            ),
            (Mode::Off, Mode::Audit, Mode::Enforce)
        );
        assert_eq!(
            (rego.namespaces.len(), rego.label, rego.replicate.len()),
            (2, None, 1)
        );
        for wrong in ["--layer=grants", "--layer=x=off", "--layer=grants=on"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        for wrong in [
            "--policy-label=x",
            "--replicate=services",
            "--replicate=v1/a,b/v1/a",
            "--base-role-arn=x",
            "--default-role=../x",
            "--reserved-role=a b",
        ] {
            assert!(parse(&[wrong]).unwrap().config().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_is_kube2iams_and_kube_mgmts() {
        let flags = parse(&[]).unwrap();
        let config = flags.config().unwrap();
        let off = (Mode::Off, Mode::Off, Mode::Off);
        let modes = config.modes;
        assert_eq!(
            (
                modes[LayerId::Namespace],
                modes[LayerId::Grants],
                modes[LayerId::Rego]
            ),
            off
        );
        assert_eq!(config.rego, RegoConfig::default());
    }

    /// A value that an environment variable takes from a file often ends in a line feed.
    #[test]
    fn blanks_around_values_do_not_count() {
        let config = |end: &str| {
            let flags = [
                format!("--base-role-arn=arn:aws:iam::123456789012:role/{end}"),
                format!("--default-role=reader{end}"),
                format!("--reserved-role={end}node{end}"),
                format!("--policy-namespaces=opa{end},{end}rules"),
                format!("--policy-label=a=b{end}"),
                format!("--replicate=v1/services{end}"),
            ];
            let flags: Vec<_> = flags.iter().map(String::as_str).collect();
            parse(&flags).unwrap().config().unwrap()
        };
        assert_eq!(config("\n"), config(""));
        assert_eq!(config("\u{a0}"), config(""));
        let blank = parse(&["--default-role=\n"]).unwrap().config().unwrap();
        assert_eq!(blank.default_role, None);
    }

    #[test]
    fn roles_and_restrictions_by_flags() {
        let flags = parse(&[
            "--base-role-arn=arn:aws:iam::123456789012:role",
            "--default-role=basic",
            "--reserved-role=node,arn:aws:iam::123456789012:role/path/rolegate",
            "--namespace-restrictions",
            "--namespace-restriction-format=regexp",
            "--namespace-restrictions-default=allow",
        ]);
        let config = flags.unwrap().config().unwrap();
        let own: Vec<_> = config
            .reserved_roles
            .iter()
            .map(|own| (own.account.as_deref(), own.name.as_str()))
            .collect();
        assert_eq!(own, [(None, "node"), (Some("123456789012"), "rolegate")]);
        assert_eq!(config.default_role.as_deref(), Some("basic"));
        assert!(config.base.is_some() && config.allow_unannotated);
        assert_eq!(config.modes[LayerId::Namespace], Mode::Enforce);
        // The layer's own flag takes precedence.
        let flags = parse(&["--namespace-restrictions", "--layer=namespace=audit"]);
        assert_eq!(flags.unwrap().modes()[LayerId::Namespace], Mode::Audit);
    }
}
