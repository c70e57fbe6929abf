//! Policies of all kinds with what OPA says to them: one file a case in `tests/corpus`.

use std::collections::BTreeMap;
use std::path::Path;

use rolegate_rego::{Kind, Points, PolicyBook, PolicySource, Replicated, Settings};
use serde_json::Value;

use crate::stage;

/// A case: modules, the question, data, and the messages in order.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    rego: String,
    #[serde(default)]
    input: Value,
    /// Data ConfigMaps: namespace, name, key.
    #[serde(default)]
    data: BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>>,
    /// Replicated objects: resource, name or namespace and name.
    #[serde(default)]
    kubernetes: BTreeMap<String, Value>,
    now: Option<String>,
    deny: Vec<String>,
}

fn run(case: &Case) -> Result<Vec<String>, String> {
    let mut book = PolicyBook::new(Settings::default());
    for (namespace, maps) in &case.data {
        for (name, entries) in maps {
            book.apply(PolicySource {
                namespace: namespace.clone(),
                name: name.clone(),
                kind: Kind::Data,
                points: Points::default(),
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
                book.replicate(&of(None, name, object));
            } else {
                for (inner, object) in object.as_object().unwrap() {
                    book.replicate(&of(Some(name), inner, object));
                }
            }
        }
    }
    book.apply(stage::policy("case", stage::GATE, &case.rego));
    if let Some(why) = book.never_loaded().into_values().next() {
        return Err(why);
    }
    let now = case
        .now
        .as_deref()
        .map_or_else(stage::now, |now| now.parse().unwrap());
    let findings = book.snapshot().judge_review(&case.input, now);
    Ok(findings
        .denials
        .into_iter()
        .map(|finding| finding.message)
        .collect())
}

#[test]
fn policies_say_what_opa_says() {
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
