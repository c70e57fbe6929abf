//! Translations of whole values files, with all notes.
#![cfg(test)]

use rolegate_migrate::{Chart, Translation, ValuesFile, translate};

/// All files of `tests/values`, with their chart and whether everything is carried over.
const FILES: [(&str, Chart, bool); 7] = [
    ("kube2iam-defaults", Chart::Kube2iam, false),
    ("kube2iam-cluster", Chart::Kube2iam, true),
    ("kube2iam-default-role", Chart::Kube2iam, false),
    ("kube2iam-hazards", Chart::Kube2iam, false),
    ("kiam-defaults", Chart::Kiam, false),
    ("kiam-cluster", Chart::Kiam, false),
    ("kiam-web-identity", Chart::Kiam, false),
];

fn translated(name: &str, pods: Option<&[serde_json::Value]>) -> Translation {
    let path = format!("{}/tests/values/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let content = std::fs::read(&path).unwrap();
    let file = ValuesFile {
        name,
        content: &content,
    };
    translate(&[file], None, pods).unwrap()
}

#[test]
fn files_of_both_charts_are_translated() {
    for (name, chart, is_complete) in FILES {
        let translation = translated(name, None);
        assert_eq!(translation.chart, chart, "{name}");
        assert_eq!(translation.is_complete(), is_complete, "{name}");
        let text = format!("{}{:#}\n", translation.comments(), translation.values);
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn no_secret_is_repeated() {
    for (name, ..) in FILES {
        let translation = translated(name, None);
        let text = format!("{}{:#}", translation.comments(), translation.json());
        for secret in ["hidden", "HIDDEN", "aGlkZGVu"] {
            assert!(!text.contains(secret), "{name}: {text}");
        }
    }
}

#[test]
fn pods_of_the_nodes_role_are_named() {
    let pod = |name: &str, annotations: serde_json::Value| {
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": {},
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations}})
    };
    let named = pod(
        "named",
        serde_json::json!({"iam.amazonaws.com/role": "reader"}),
    );
    let note = |pods: Option<&[serde_json::Value]>| {
        let translation = translated("kube2iam-default-role", pods);
        let from = "extraArgs.auto-discover-default-role";
        let mut notes = translation.notes.clone().into_iter();
        (notes.find(|note| note.from == from).unwrap(), translation)
    };
    let (unknown, translation) = note(None);
    assert!(unknown.message.contains("--pods cluster"), "{unknown:?}");
    assert!(!translation.is_complete());
    let (found, translation) = note(Some(&[named.clone(), pod("plain", serde_json::json!({}))]));
    assert_eq!(found.pods, ["shop/plain"]);
    assert!(
        translation.comments().contains("# - shop/plain")
            || translation.comments().contains("#   - shop/plain")
    );
    assert!(!translation.is_complete());
    let (none, translation) = note(Some(&[named]));
    assert!(
        none.pods.is_empty() && translation.is_complete(),
        "{none:?}"
    );
}
