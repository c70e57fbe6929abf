//! Finds ConfigMaps and files with Rego that is never evaluated, and the reason.

use rolegate_core::config::{DATA_LABEL, RuleConfig};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_kube::config_maps::ConfigMap;
use rolegate_rego::{UnusedPolicy, looks_like_rego};
use rolegate_rules::store::RuleStoreWriter;
use serde_json::Value;

use super::{Module, Origin, Unused};

/// Finds policies without effect. `files` are `modules` as ConfigMaps.
pub(super) fn find(
    documents: &[Value],
    maps: &[(usize, ConfigMap)],
    files: &[ConfigMap],
    modules: &[Module],
    writer: &RuleStoreWriter,
) -> Vec<Unused> {
    let config = writer.builder().config();
    let unused = writer.policies().unused_policies();
    let nothing_denies = |map: &ConfigMap| {
        let id = format!("{}/{}", map.namespace, map.name);
        let mut unused = unused.iter();
        unused.find(|one| *one.policy == *id).map(no_deny)
    };
    let maps = maps.iter().filter_map(|(place, map)| {
        let binary = documents
            .get(*place)
            .and_then(|document| document.get("binaryData"));
        let why = invalid_points(map, binary, config).or_else(|| nothing_denies(map))?;
        Some(Unused {
            place: Origin::Document(*place),
            name: format!("{}/{}", map.namespace, map.name),
            why,
        })
    });
    let files = files
        .iter()
        .zip(modules)
        .enumerate()
        .filter_map(|(place, (map, module))| {
            let why = is_off(config).or_else(|| nothing_denies(map))?;
            Some(Unused {
                place: Origin::Module(place),
                name: module.file.clone(),
                why,
            })
        });
    maps.chain(files).collect()
}

fn is_off(config: &RuleConfig) -> Option<String> {
    let why = "layer rego is off, so no policy is evaluated: enable it in the RolegateConfig or \
               with --layer=rego=audit";
    (config.modes[LayerId::Rego] == Mode::Off).then(|| why.into())
}

/// Returns the reason why a ConfigMap with Rego is not read as policies.
fn invalid_points(map: &ConfigMap, binary: Option<&Value>, config: &RuleConfig) -> Option<String> {
    let mut binary = binary.and_then(Value::as_object).into_iter().flatten();
    let in_binary = binary.find_map(|(entry, _)| entry.ends_with(".rego").then_some(entry));
    let mut entries = map.data.iter();
    let is_rego = entries.any(|(entry, text)| looks_like_rego(entry, text));
    if !is_rego && in_binary.is_none() {
        return None;
    }
    if let Some(why) = is_off(config) {
        return Some(why);
    }
    if !config.rego.namespaces.contains(&map.namespace) {
        let namespaces: Vec<_> = config.rego.namespaces.iter().map(|name| &**name).collect();
        return Some(format!(
            "the ConfigMap is in namespace {}, but policies are read from namespaces {}: move it \
             there, or add its namespace to rego.namespaces",
            map.namespace,
            namespaces.join(", ")
        ));
    }
    if map.labels.get(DATA_LABEL.0) == Some(DATA_LABEL.1) {
        return Some(format!(
            "the ConfigMap has label {}={}, so its Rego is read as data: remove the label",
            DATA_LABEL.0, DATA_LABEL.1
        ));
    }
    if let Some((key, value)) = &config.rego.label
        && map.labels.get(key) != Some(value)
    {
        return Some(format!(
            "the ConfigMap does not have label {key}={value}, so its Rego is not read"
        ));
    }
    in_binary.map(|entry| format!("binaryData is not read: move {entry} to data"))
}

fn no_deny(unused: &UnusedPolicy) -> String {
    let packages: Vec<_> = unused.packages.iter().map(String::as_str).collect();
    let packages = packages.join(", ");
    let instead = if unused.has_violation {
        ": rules named violation are Gatekeeper's"
    } else {
        ""
    };
    format!(
        "no rule of it is ever evaluated: it has no deny rule in package kubernetes.admission \
         (its package is {packages}){instead}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{OfflineOptions, load};
    use super::*;

    fn map(change: Value) -> Value {
        let mut map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "images", "namespace": "opa",
                "labels": {"openpolicyagent.org/policy": "rego"}},
            "data": {"images.rego": "package kubernetes.admission\ndeny[msg] { msg := \"no\" }\n"},
        });
        json_patch(&mut map, change);
        map
    }

    /// Applies a JSON merge patch (RFC 7386).
    fn json_patch(value: &mut Value, change: Value) {
        match change {
            Value::Object(fields) => {
                for (name, change) in fields {
                    json_patch(&mut value[name], change);
                }
            }
            other => *value = other,
        }
    }

    fn why(documents: &[Value], files: &[(&str, &str)], config: RuleConfig) -> Vec<String> {
        let options = OfflineOptions {
            guess_modes: false,
            flags: config,
            modules: files
                .iter()
                .map(|(file, text)| Module {
                    file: (*file).into(),
                    text: (*text).into(),
                })
                .collect(),
            ..OfflineOptions::default()
        };
        let unused = load(documents, options).unwrap().unused;
        let actual = unused.iter();
        actual
            .map(|one| format!("{:?} {}: {}", one.place, one.name, one.why))
            .collect()
    }

    fn on() -> RuleConfig {
        let mut config = RuleConfig::default();
        config.modes[LayerId::Rego] = Mode::Enforce;
        config
    }

    #[test]
    fn each_reason_is_reported_with_its_origin() {
        let rego = |text: &str| json!({"data": {"images.rego": text}});
        for (change, part) in [
            (
                json!({"metadata": {"namespace": "shop"}}),
                "read from namespaces opa",
            ),
            (
                json!({"metadata": {"namespace": null}}),
                "is in namespace default",
            ),
            (
                json!({"metadata": {"labels": null}}),
                "does not have label openpolicyagent.org/policy=rego",
            ),
            (
                json!({"metadata": {"labels": {"openpolicyagent.org/data": "opa"}}}),
                "as data",
            ),
            (
                json!({"data": null, "binaryData": {"a.rego": "eA=="}}),
                "move a.rego to data",
            ),
            (
                rego("package k8srequired\nviolation[msg] { msg := \"no\" }\n"),
                "are Gatekeeper's",
            ),
            (
                rego("package main\ndeny[msg] { msg := \"no\" }\n"),
                "its package is main",
            ),
        ] {
            let actual = why(&[json!({"kind": "X"}), map(change)], &[], on());
            assert_eq!(actual.len(), 1, "{part}: {actual:?}");
            assert!(
                actual[0].starts_with("Document(1)") && actual[0].contains(part),
                "{actual:?}"
            );
        }
        assert!(why(&[map(json!({}))], &[], on())[..].is_empty());
        let off = why(
            &[map(json!({}))],
            &[("a.rego", "package a")],
            RuleConfig::default(),
        );
        assert_eq!(off.len(), 2);
        assert!(off.iter().all(|why| why.contains("layer rego is off")));
    }

    #[test]
    fn libraries_tests_and_other_config_maps_are_not_reported() {
        let library = "package lib\nbad { input.request.x }\n";
        let user =
            "package kubernetes.admission\nimport data.lib\ndeny[msg] { lib.bad; msg := \"x\" }\n";
        let tests = "package lib_test\ntest_bad { true }\n";
        let files = [
            ("lib.rego", library),
            ("user.rego", user),
            ("x_test.rego", tests),
        ];
        let settings = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "settings", "namespace": "shop"}, "data": {"a": "b"}});
        assert_eq!(why(&[settings], &files, on())[..], [""; 0]);
        let alone = why(&[], &files[..1], on());
        assert!(alone[0].starts_with("Module(0) lib.rego") && alone[0].contains("package is lib"));
    }

    #[test]
    fn a_file_gets_the_configured_namespace_and_label() {
        let mut config = on();
        config.rego.namespaces = ["policies".into()].into();
        config.rego.label = Some(("team".into(), "a".into()));
        let deny = "package kubernetes.admission\ndeny[msg] { msg := \"no\" }\n";
        let options = OfflineOptions {
            guess_modes: false,
            flags: config,
            modules: vec![Module {
                file: "policies/no.rego".into(),
                text: deny.into(),
            }],
            ..OfflineOptions::default()
        };
        let offline = load(&[], options).unwrap();
        assert_eq!(offline.unused, []);
        let expected = ("policies/policies/no.rego".to_owned(), Origin::Module(0));
        assert_eq!(offline.policies, [expected]);
        assert!(offline.writer.rules().load().asks_policies_at_admission());
    }
}
