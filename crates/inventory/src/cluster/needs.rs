//! The objects of a cluster that policies need.

use std::collections::BTreeSet;

use rolegate_api::CONFIG_NAME;
use rolegate_core::config::{ResourceKind, RuleConfig};
use rolegate_core::layer::{LayerId, Mode};
use serde_json::Value;

use crate::object::is_config;

/// The namespaces and kinds that policies need.
#[derive(Default)]
pub(super) struct PolicyNeeds {
    /// The namespaces with ConfigMaps of policies.
    pub(super) namespaces: BTreeSet<String>,
    /// The replicated kinds.
    pub(super) replicate: BTreeSet<ResourceKind>,
}

impl PolicyNeeds {
    /// Reads it from the configuration, which is validated later, or else from `flags`. Empty if the
    /// layer is off and `if_off` is not set.
    pub(super) fn of(configs: &[Value], flags: &RuleConfig, if_off: bool) -> Self {
        let name = |object: &&Value| {
            let name = object.pointer("/metadata/name").and_then(Value::as_str);
            name == Some(CONFIG_NAME)
        };
        let mut ours = configs.iter().filter(|object| is_config(object));
        let Some(config) = ours.find(name) else {
            if flags.modes[LayerId::Rego] == Mode::Off && !if_off {
                return Self::default();
            }
            let namespaces = flags.rego.namespaces.iter();
            return Self {
                namespaces: namespaces.map(ToString::to_string).collect(),
                replicate: flags.rego.replicate.iter().cloned().collect(),
            };
        };
        let texts = |pointer: &str| -> Option<Vec<&str>> {
            let list = config.pointer(pointer)?.as_array()?;
            Some(list.iter().filter_map(Value::as_str).collect())
        };
        let mode = config.pointer("/spec/layers/rego").and_then(Value::as_str);
        if matches!(mode, None | Some("off")) && !if_off {
            return Self::default();
        }
        Self {
            namespaces: texts("/spec/rego/namespaces")
                .map_or_else(
                    || vec!["opa".to_owned()],
                    |names| names.into_iter().map(str::to_owned).collect(),
                )
                .into_iter()
                .collect(),
            replicate: texts("/spec/rego/replicate")
                .unwrap_or_default()
                .into_iter()
                .filter_map(ResourceKind::parse)
                .collect(),
        }
    }

    /// Adds other needs.
    pub(super) fn extend(&mut self, other: Self) {
        self.namespaces.extend(other.namespaces);
        self.replicate.extend(other.replicate);
    }
}
