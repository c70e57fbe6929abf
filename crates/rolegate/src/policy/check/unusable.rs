//! Errors in rules among the manifests.

use std::collections::BTreeMap;

use rolegate_core::config::Modes;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::text::plain;
use rolegate_inventory::files::Manifests;
use rolegate_inventory::in_force::FlagSources;
use rolegate_inventory::load::Assumed;
use rolegate_inventory::names::RuleKind;
use rolegate_inventory::object::{is_config, is_core, is_ours};
use rolegate_inventory::objects::Objects;
use rolegate_policy::check::namespace_of;
use serde_json::Value;

use super::super::current::load;

/// Returns the errors in rules among the manifests, by file and line: grants and policies that
/// would be unusable if they were applied.
///
/// # Errors
/// Returns an error for a malformed object.
pub(super) fn unusable(
    rules: &Objects,
    sources: &FlagSources,
    manifests: &[Manifests],
    namespace: &str,
) -> anyhow::Result<BTreeMap<(String, u64), String>> {
    let mut change = Objects::default();
    let mut places = Vec::new();
    for one in manifests {
        for document in &one.documents {
            let value = &document.value;
            let is_map = is_core(value, "ConfigMap");
            if !is_map && !is_ours(value, "RoleGrant") && !is_config(value) {
                continue;
            }
            let mut value = value.clone();
            if let (true, Some(metadata)) = (is_map, value.get_mut("metadata")) {
                let named = metadata.get("namespace").and_then(Value::as_str);
                if named.is_none_or(str::is_empty) {
                    metadata["namespace"] = namespace.into();
                }
            }
            let name = value
                .pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let named = if is_map {
                (
                    RuleKind::Policy,
                    format!("{}/{name}", namespace_of(&value, namespace)),
                )
            } else {
                (RuleKind::RoleGrant, name.to_owned())
            };
            places.push((named, (one.file.clone(), document.line())));
            let line = document.line();
            change.push_of(value, Some(format!("{}:{line}", plain(&one.file))));
        }
    }
    if places.is_empty() {
        return Ok(BTreeMap::new());
    }
    let applied = rules.overlaid(&change, false);
    // As if their layer were enabled.
    let modes = Modes::default()
        .with(LayerId::Grants, Mode::Enforce)
        .with(LayerId::Rego, Mode::Enforce);
    let assumed = Assumed {
        modes: Some(modes),
        ..Assumed::default()
    };
    let loaded = load(&applied, sources, &assumed)?;
    let faults = loaded.unusable.into_iter().filter_map(|one| {
        let named = (one.kind, one.name);
        let (_, place) = places.iter().find(|(known, _)| *known == named)?;
        Some((place.clone(), one.sentence))
    });
    Ok(faults.collect())
}
