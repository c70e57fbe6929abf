use super::*;

fn documents(text: &str) -> Result<Vec<Document>, ManifestError> {
    super::documents(text).map(|parsed| parsed.documents)
}

const HELM: &str = "\
---
# Source: shop/templates/api.yaml
apiVersion: v1
kind: Pod
metadata:
  name: api
  annotations:
    iam.amazonaws.com/role: reader
---
---
# Source: shop/templates/list.yaml
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    metadata: {name: a}
  - apiVersion: v1
    kind: Pod
    metadata:
      name: b
---
apiVersion: v1
kind: Namespace
metadata: {name: web}
";

fn broken(text: &str) -> String {
    let error = documents(text).unwrap_err();
    format!("{}: {error}", error.line().unwrap_or(0))
}

#[test]
fn parts_know_their_lines_and_templates() {
    let found = documents(HELM).unwrap();
    let message: Vec<_> = found
        .iter()
        .map(|document| {
            let name = document.text("/metadata/name").unwrap();
            let source = document.source.as_deref().unwrap_or("-");
            let line = document.line_of(["metadata", "name"]);
            format!("{name} {} {line} {source}", document.line())
        })
        .collect();
    assert_eq!(
        message,
        [
            "api 3 6 shop/templates/api.yaml",
            "a 15 17 shop/templates/list.yaml",
            "b 18 21 shop/templates/list.yaml",
            "web 23 25 -",
        ]
    );
    let role = ["metadata", "annotations", "iam.amazonaws.com/role"];
    assert_eq!(found[0].line_of(role), 8);
    assert_eq!(found[0].line_of(["spec", "template"]), 3);
}

#[test]
fn json_and_typed_lists_are_taken() {
    let text = "{\"apiVersion\": \"v1\",\n\"kind\": \"PodList\", \"items\": [\n{\"metadata\": {\"name\": \"a\"}}]}";
    let found = documents(text).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].value["kind"], "Pod");
    assert_eq!(found[0].line(), 3);
    let surrogates = r#"{"apiVersion": "v1", "kind": "Pod", "x": "\ud83d\ude00"}"#;
    assert_eq!(documents(surrogates).unwrap()[0].value["x"], "😀");
}

#[test]
fn nothing_is_not_an_object_and_not_an_error() {
    for text in ["", "\n", "---\n", "# a comment\n", "---\n---\n"] {
        assert!(documents(text).unwrap().is_empty(), "{text:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let message = broken("apiVersion: v1\nkind: Pod\nmetadata: [\n");
    assert!(message.contains("YAML"), "{message}");
    let message = broken("a: 1\n---\napiVersion: v1\nkind: Pod\n");
    assert!(
        message.starts_with("1: ") && message.contains("apiVersion"),
        "{message}"
    );
    let message = broken("apiVersion: v1\nkind: Pod\n---\napiVersion: v1\n");
    assert!(
        message.starts_with("4: ") && message.contains("kind"),
        "{message}"
    );
    let message = broken("apiVersion: v1\nkind: Pod\nkind: Pod\n");
    assert!(message.contains("duplicate key kind"), "{message}");
    assert!(broken("just text\n").contains("apiVersion"));
    assert!(broken("apiVersion: v1\nkind: List\nitems: [1]\n").contains("not a Kubernetes object"));
}

#[test]
fn aliases_cannot_make_much_of_little() {
    let mut bomb = "apiVersion: v1\nkind: Pod\na0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let item = format!("*a{}", level - 1);
        let list = vec![item; 9].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert!(matches!(
        documents(&bomb),
        Err(ManifestError::Syntax { .. })
    ));
    let deep = format!("apiVersion: v1\nkind: Pod\na: {}", "[".repeat(10_000));
    assert!(documents(&deep).is_err());
    let deep = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"a\": {}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    assert!(documents(&deep).is_err());
    assert_eq!(
        documents(&" ".repeat(MAX_BYTES + 1)).unwrap_err(),
        ManifestError::TooLarge
    );
}

#[test]
fn numbers_and_words_are_read_as_kubernetes_reads_them() {
    let text =
        "apiVersion: v1\nkind: X\nmode: 0644\nyes: 'on'\n1: one\nanchor: &a {b: c}\nalias: *a\n";
    let value = documents(text).unwrap().remove(0).value;
    assert_eq!(value["mode"], 420);
    assert_eq!(value["1"], "one");
    assert_eq!(value["alias"]["b"], "c");
}

#[test]
fn objects_with_items_are_split_as_in_kubectl() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#;
    let kinds = |text: &str| -> Vec<String> {
        let found = documents(text).unwrap();
        let kinds = found.iter().map(|one| one.text("/kind").unwrap());
        kinds.map(str::to_owned).collect()
    };
    for kind in ["ConfigMap", "List", "Widget"] {
        let text = format!(r#"{{"apiVersion": "v1", "kind": "{kind}", "items": [{pod}]}}"#);
        assert_eq!(kinds(&text), ["Pod"], "{kind}");
        let nested = format!(r#"{{"apiVersion": "v1", "kind": "{kind}", "items": [{text}]}}"#);
        assert_eq!(kinds(&nested), ["Pod"], "{kind}");
    }
    // An item without a kind has the list's own kind.
    let text = "apiVersion: v1\nkind: ConfigMap\nitems: [{metadata: {name: a}}]\n";
    assert_eq!(kinds(text), ["ConfigMap"]);
    assert!(kinds("apiVersion: v1\nkind: ConfigMap\nitems: null\n").is_empty());
    for wrong in [
        "apiVersion: v1\nkind: ConfigMap\nitems: {a: b}\n",
        "apiVersion: v1\nkind: PodList\nitems: [{kind: Pod}]\n",
        "apiVersion: v1\nkind: List\nitems: [{a: b}]\n",
    ] {
        assert!(documents(wrong).is_err(), "{wrong}");
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn non_objects_are_skipped_and_partial_objects_are_errors() {
    for other in [
        "replicas: 1\n",
        "apiVersion: v2\nname: chart\nversion: 1.0.0\n",
        "services: {web: {image: x}}\n",
        "[1, 2]\n",
        "just text\n",
    ] {
        let text = format!("{other}---\napiVersion: v1\nkind: Pod\n");
        let parsed = read(&text).unwrap();
        assert_eq!(
            (parsed.documents.len(), parsed.others),
            (1, vec![1]),
            "{other}"
        );
    }
    for half in [
        "kind: Pod\nmetadata: {name: x}\n",
        "apiVersion: v1\nmetadata: {name: x}\n",
        "apiVersion: ''\nkind: Pod\n",
    ] {
        assert!(read(half).is_err(), "{half}");
    }
}

#[test]
fn the_last_of_duplicate_json_keys_counts_as_in_kubectl() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "name": "b"}}"#;
    let found = documents(text).unwrap();
    assert_eq!(found[0].text("/metadata/name"), Some("b"));
    assert!(found[0].has_duplicate_keys);
    assert!(!documents(&text.replace(r#""name": "a", "#, "")).unwrap()[0].has_duplicate_keys);
}

#[test]
fn messages_are_about_the_text_and_not_about_its_reader() {
    let mut bomb = "apiVersion: v1\nkind: Pod\na0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 9].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let deep = format!("apiVersion: v1\nkind: Pod\na: {}", "[".repeat(1_000));
    for (text, part) in [
        ("kind: Pod\nkind: Pod\n", "duplicate key kind"),
        ("a: {a: &x b}\nb: *y\n", "alias"),
        ("a: .nan\n", "a number that JSON does not support"),
        (bomb.as_str(), "aliases"),
        (deep.as_str(), "limit"),
        ("? [a, b]\n: c\n", "keys must be strings"),
        ("a: !!binary 'x?'\n", "base64"),
        ("a: !custom b\n", ""),
        ("a: [\n", ""),
        ("\ta: b\n", ""),
    ] {
        let Err(error) = documents(text) else {
            continue;
        };
        let message = error.to_string();
        assert!(message.contains(part), "{text:.60}: {message}");
        for inside in [
            "Policy", "Options", "policy", "budget", "Breach", "{ ", "scalar", "expected",
            "deserial", "serde", "struct", "visitor", "Recorded",
        ] {
            assert!(!message.contains(inside), "{text:.60}: {message}");
        }
    }
}

#[test]
fn a_template_that_was_not_rendered_is_said_to_be_one() {
    for text in [
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Release.Name }}\n",
        "{{- if .Values.x }}\napiVersion: v1\nkind: Pod\n{{- end }}\n",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    {{- include \"x\" . | nindent 4 }}\n",
    ] {
        let message = documents(text).unwrap_err().to_string();
        assert!(message.contains("helm template"), "{text}: {message}");
    }
}
