//! Flags about rules, shared by every command that decides. They count where the cluster has no
//! `RolegateConfig`.

use std::str::FromStr;

use clap::Args;
use rolegate_core::config::{Modes, POLICY_LABEL, RegoConfig, ResourceKind};
use rolegate_core::layer::Mode;

use crate::flags::{ClusterConfigUse, invalid};

const RULES: &str = "Roles and rules";

/// Flags about rules.
#[derive(Debug, Args)]
pub(crate) struct RuleFlags {
    /// Whether the cluster's RolegateConfig counts, which goes before the flags about roles and rules: auto where its custom resource is installed
    #[arg(long, value_name = "USE", env = "ROLEGATE_CLUSTER_CONFIG", default_value = "auto", help_heading = RULES)]
    pub(crate) cluster_config: ClusterConfigUse,
    /// A layer of rules and its mode, such as grants=audit: layers are namespace, grants and rego, modes enforce, audit and off
    #[arg(long, value_name = "NAME=MODE", env = "ROLEGATE_LAYER", value_delimiter = ',', help_heading = RULES)]
    layer: Vec<LayerMode>,
    /// Namespaces whose ConfigMaps hold Rego policies and data
    #[arg(long, value_name = "NAMESPACE", env = "ROLEGATE_POLICY_NAMESPACES", value_delimiter = ',', default_value = "opa", help_heading = RULES)]
    policy_namespaces: Vec<String>,
    /// Label of ConfigMaps that hold Rego policies; empty: all ConfigMaps of those namespaces
    #[arg(long, value_name = "KEY=VALUE", env = "ROLEGATE_POLICY_LABEL", default_value = "openpolicyagent.org/policy=rego", help_heading = RULES)]
    policy_label: String,
    /// Kinds that Rego policies read at data.kubernetes beside namespaces, as [GROUP/]VERSION/RESOURCE
    #[arg(long, value_name = "KIND", env = "ROLEGATE_REPLICATE", value_delimiter = ',', help_heading = RULES)]
    replicate: Vec<String>,
}

/// One layer and its mode.
#[derive(Debug, Clone, Copy)]
struct LayerMode {
    layer: LayerName,
    mode: Mode,
}

#[derive(Debug, Clone, Copy)]
enum LayerName {
    Namespace,
    Grants,
    Rego,
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
            layer: match layer {
                "namespace" => LayerName::Namespace,
                "grants" => LayerName::Grants,
                "rego" => LayerName::Rego,
                _ => return Err(wrong()),
            },
            mode: match mode {
                "enforce" => Mode::Enforce,
                "audit" => Mode::Audit,
                "off" => Mode::Off,
                _ => return Err(wrong()),
            },
        })
    }
}

impl RuleFlags {
    /// The modes, where `start` counts for layers that are not named.
    pub(crate) fn modes(&self, start: Modes) -> Modes {
        let mut modes = start;
        for LayerMode { layer, mode } in &self.layer {
            match layer {
                LayerName::Namespace => modes.namespace = *mode,
                LayerName::Grants => modes.grants = *mode,
                LayerName::Rego => modes.rego = *mode,
            }
        }
        modes
    }

    /// Where Rego policies come from.
    ///
    /// # Errors
    /// A flag that makes no sense, as wrong usage.
    pub(crate) fn rego(&self) -> anyhow::Result<RegoConfig> {
        let label = match self.policy_label.as_str() {
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
        let replicate = self.replicate.iter().map(|text| {
            ResourceKind::parse(text).ok_or_else(|| {
                invalid(format!(
                    "--replicate: {text:?} is not [GROUP/]VERSION/RESOURCE, such as networking.k8s.io/v1/ingresses"
                ))
            })
        });
        Ok(RegoConfig {
            namespaces: self
                .policy_namespaces
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            label,
            replicate: replicate.collect::<anyhow::Result<_>>()?,
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
        ]);
        let flags = flags.unwrap();
        let modes = flags.modes(Modes::default());
        assert_eq!(
            (modes.namespace, modes.grants, modes.rego),
            (Mode::Enforce, Mode::Audit, Mode::Enforce)
        );
        let rego = flags.rego().unwrap();
        assert_eq!(
            (rego.namespaces.len(), rego.label, rego.replicate.len()),
            (2, None, 1)
        );
        for wrong in ["--layer=grants", "--layer=x=off", "--layer=grants=on"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        for wrong in ["--policy-label=x", "--replicate=services"] {
            assert!(parse(&[wrong]).unwrap().rego().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_is_kube_mgmts() {
        let rego = parse(&[]).unwrap().rego().unwrap();
        assert_eq!(rego, RegoConfig::default());
    }
}
