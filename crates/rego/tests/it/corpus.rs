//! Compares all kinds of policies with OPA's results: one case in each file of `tests/corpus`.

use std::collections::BTreeMap;
use std::path::Path;

use rolegate_rego::{EnforcementPoints, Kind, PolicySource, PolicyStore, Replicated, Settings};
use serde_json::Value;

use crate::helpers;

/// A case: modules, input, data, and the messages in order.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    rego: String,
    #[serde(default)]
    input: Value,
    /// Data ConfigMaps by namespace, name and key.
    #[serde(default)]
    data: BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>>,
    /// Replicated objects by resource, and by name or by namespace and name.
    #[serde(default)]
    kubernetes: BTreeMap<String, Value>,
    now: Option<String>,
    deny: Vec<String>,
}

fn run(case: &Case) -> Result<Vec<String>, String> {
    let mut store = PolicyStore::new(Settings::default());
    for (namespace, maps) in &case.data {
        for (name, entries) in maps {
            store.apply(PolicySource {
                namespace: namespace.clone(),
                name: name.clone(),
                kind: Kind::Data,
                points: EnforcementPoints::default(),
                entries: entries
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_string()))
                    .collect(),
            });
        }
    }
    for (resource, objects) in &case.kubernetes {
        for (name, object) in objects.as_object().unwrap() {
            let of = |namespace: Option<&String>, name: &String, object: &Value| Replicated {
                resource: resource.clone(),
                namespace: namespace.cloned(),
                name: name.clone(),
                object: object.to_string().into(),
            };
            if resource == "namespaces" {
                store.replicate(&of(None, name, object));
            } else {
                for (inner, object) in object.as_object().unwrap() {
                    store.replicate(&of(Some(name), inner, object));
                }
            }
        }
    }
    store.apply(helpers::policy("case", helpers::ADMISSION, &case.rego));
    if let Some(why) = store.never_loaded().into_values().next() {
        return Err(why);
    }
    let now = case
        .now
        .as_deref()
        .map_or_else(helpers::now, |now| now.parse().unwrap());
    let findings = store.snapshot().evaluate_review(&case.input, now);
    Ok(findings
        .denials
        .into_iter()
        .map(|finding| finding.message)
        .collect())
}

#[test]
fn results_agree_with_opa() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let (mut count, mut failures) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let case: Case = match serde_saphyr::from_str(&text) {
            Ok(case) => case,
            Err(error) => panic!("{name}: {error}"),
        };
        count += 1;
        let expected = {
            let mut sorted = case.deny.clone();
            sorted.sort();
            sorted
        };
        let got = run(&case).map(|mut messages| {
            messages.sort();
            messages
        });
        if got.as_ref() != Ok(&expected) {
            failures.push(format!(
                "{name}:\n  expected {expected:?}\n  got      {got:?}"
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count}:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count >= 60, "{count}");
}
