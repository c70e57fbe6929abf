//! Manifests: Kubernetes objects as people and tools write them (streams of YAML, JSON, lists, the
//! output of Helm), with the lines that their parts stand on.
//!
//! What is read is bounded in bytes, nesting, nodes and in what aliases expand to, since manifests
//! of a pull request are anybody's.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Most bytes of one text.
pub const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Most objects of one text, those in lists included.
pub const MOST_OBJECTS: usize = 20_000;
/// Deepest nesting of collections.
const MOST_DEPTH: usize = 100;
/// Most events of the parser, one for each scalar and each begin and end of a collection.
const MOST_EVENTS: usize = 4_000_000;
/// Most events that aliases may add.
const MOST_REPLAYED: usize = 100_000;

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`MOST_BYTES`].
    #[error("it is larger than {} MiB: split it", MOST_BYTES / (1024 * 1024))]
    TooLarge,
    /// There are more objects than [`MOST_OBJECTS`].
    #[error("it has more than {MOST_OBJECTS} objects: split it")]
    TooMany,
    /// It is not YAML and not JSON, or goes over a limit.
    #[error("it is neither YAML nor JSON that can be read: {message}")]
    Syntax {
        /// Where, from 1; 0 where that is not known.
        line: u64,
        /// What the parser says.
        message: String,
    },
    /// A document that is no Kubernetes object.
    #[error(
        "the document is no Kubernetes object, for it has no {missing}: leave it out, or mend it"
    )]
    NoObject {
        /// Where it starts, from 1.
        line: u64,
        /// Which field.
        missing: &'static str,
    },
}

impl ManifestError {
    /// The line, from 1, where it is known.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::TooLarge | Self::TooMany => None,
            Self::Syntax { line, .. } | Self::NoObject { line, .. } => {
                Some(*line).filter(|line| *line > 0)
            }
        }
    }
}

/// One Kubernetes object of a manifest.
#[derive(Debug, Clone)]
pub struct Document {
    /// The object, a map with `apiVersion` and `kind`.
    pub value: Value,
    /// The template that Helm made it from, of its `# Source:` comment.
    pub source: Option<String>,
    lines: Lines,
}

impl Document {
    /// The line that the object starts on, from 1.
    pub fn line(&self) -> u64 {
        self.lines.line
    }

    /// The line of the part at `path`, or of the closest part around it that is there. Places in
    /// lists are numbers.
    pub fn line_of<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> u64 {
        let mut here = &self.lines;
        for step in path {
            let Some((_, next)) = here.parts.iter().find(|(name, _)| name == step) else {
                break;
            };
            here = next;
        }
        here.line
    }

    /// A text field, such as `/metadata/name`.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }
}

/// The lines of a value and its parts; scalars have none.
#[derive(Debug, Clone, Default)]
struct Lines {
    line: u64,
    parts: Vec<(String, Lines)>,
}

/// Reads all objects of a text. Lists (`kind: List` and all with `items` whose kind ends so) are
/// taken apart; empty documents are left out.
///
/// # Errors
/// [`ManifestError`], with the line where there is one.
pub fn documents(text: &str) -> Result<Vec<Document>, ManifestError> {
    if text.len() > MOST_BYTES {
        return Err(ManifestError::TooLarge);
    }
    let parsed = serde_saphyr::from_multiple_with_options::<Node>(text, options());
    let nodes = match parsed {
        Ok(nodes) => nodes,
        // Some of JSON is no YAML, such as surrogate pairs in escapes.
        Err(error) => from_json(text).ok_or_else(|| syntax(&error))?,
    };
    let sources = sources(text);
    let mut found = Vec::new();
    for (value, lines) in nodes.into_iter().map(|node| (node.value, node.lines)) {
        if value.is_null() {
            continue;
        }
        let source = sources.iter().rev().find(|(line, _)| *line <= lines.line);
        let source = source.and_then(|(_, source)| source.clone());
        take(value, lines, source.as_deref(), &mut found)?;
    }
    Ok(found)
}

fn take(
    value: Value,
    lines: Lines,
    source: Option<&str>,
    found: &mut Vec<Document>,
) -> Result<(), ManifestError> {
    for missing in ["apiVersion", "kind"] {
        let field = value.get(missing).and_then(Value::as_str);
        if field.is_none_or(str::is_empty) {
            let line = lines.line;
            return Err(ManifestError::NoObject { line, missing });
        }
    }
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !kind.ends_with("List") || !value.get("items").is_some_and(Value::is_array) {
        if found.len() >= MOST_OBJECTS {
            return Err(ManifestError::TooMany);
        }
        found.push(Document {
            value,
            source: source.map(str::to_owned),
            lines,
        });
        return Ok(());
    }
    let item_kind = kind
        .strip_suffix("List")
        .filter(|kind| !kind.is_empty())
        .map(str::to_owned);
    let version = value.get("apiVersion").cloned().unwrap_or_default();
    let (items, mut item_lines) = items(value, lines);
    for (place, mut item) in items.into_iter().enumerate() {
        // Items of a typed list, such as PodList, may leave out what the list says.
        if let (Some(kind), Value::Object(fields)) = (&item_kind, &mut item) {
            fields.entry("kind").or_insert_with(|| kind.as_str().into());
            fields
                .entry("apiVersion")
                .or_insert_with(|| version.clone());
        }
        let lines = item_lines
            .get_mut(place)
            .map(std::mem::take)
            .unwrap_or_default();
        take(item, lines, source, found)?;
    }
    Ok(())
}

fn items(value: Value, lines: Lines) -> (Vec<Value>, Vec<Lines>) {
    let values = match value {
        Value::Object(mut fields) => match fields.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let mut parts = lines.parts.into_iter();
    let lines = parts.find(|(name, _)| name == "items");
    let lines = lines.map(|(_, lines)| lines.parts).unwrap_or_default();
    (values, lines.into_iter().map(|(_, lines)| lines).collect())
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MOST_OBJECTS,
            max_depth: MOST_DEPTH,
            max_events: MOST_EVENTS,
            max_nodes: MOST_EVENTS,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: MOST_REPLAYED,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MOST_REPLAYED,
            max_replay_stack_depth: 16,
        },
        // As Kubernetes reads them: `0644` is octal.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

fn syntax(error: &serde_saphyr::Error) -> ManifestError {
    let message = error.to_string();
    let message = message.lines().next().unwrap_or_default();
    ManifestError::Syntax {
        line: error.location().map_or(0, |place| place.line()),
        message: crate::text::plain(message),
    }
}

fn from_json(text: &str) -> Option<Vec<Node>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    values
        .map(|value| {
            let lines = Lines {
                line: 1,
                parts: Vec::new(),
            };
            value.ok().map(|value| Node { value, lines })
        })
        .collect()
}

/// Where documents and Helm's comments start: the line, and the template or nothing.
fn sources(text: &str) -> Vec<(u64, Option<String>)> {
    let mut found = Vec::new();
    for (number, line) in (1_u64..).zip(text.lines()) {
        if let Some(source) = line.strip_prefix("# Source: ") {
            found.push((number, Some(crate::text::plain(source.trim()))));
        } else if line.starts_with("---") {
            found.push((number, None));
        }
    }
    found
}

/// A value while it is read, with its lines.
struct Node {
    value: Value,
    lines: Lines,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Parts>::deserialize(deserializer)?;
        let Parts { value, parts } = spanned.value;
        let line = spanned.referenced.line();
        Ok(Self {
            value,
            lines: Lines { line, parts },
        })
    }
}

struct Parts {
    value: Value,
    parts: Vec<(String, Lines)>,
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartsVisitor)
    }
}

struct PartsVisitor;

fn scalar<E>(value: impl Into<Value>) -> Result<Parts, E> {
    Ok(Parts {
        value: value.into(),
        parts: Vec::new(),
    })
}

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Parts, E> {
        scalar(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Parts, E> {
        scalar(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Parts, E> {
        scalar(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Parts, E> {
        let number = Number::from_f64(value);
        scalar(number.ok_or_else(|| E::custom("a number that JSON has not"))?)
    }

    fn visit_str<E>(self, value: &str) -> Result<Parts, E> {
        scalar(value)
    }

    fn visit_string<E>(self, value: String) -> Result<Parts, E> {
        scalar(value)
    }

    fn visit_unit<E>(self) -> Result<Parts, E> {
        scalar(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Parts, E> {
        scalar(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parts, D::Error> {
        Parts::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parts, A::Error> {
        let (mut values, mut parts) = (Vec::new(), Vec::new());
        while let Some(Node { value, lines }) = list.next_element()? {
            parts.push((values.len().to_string(), lines));
            values.push(value);
        }
        Ok(Parts {
            value: values.into(),
            parts,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
        let (mut values, mut parts) = (Map::new(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            let Node { value, lines } = map.next_value()?;
            if values.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("{key:?} is there twice")));
            }
            parts.push((key, lines));
        }
        Ok(Parts {
            value: values.into(),
            parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let told: Vec<_> = found
            .iter()
            .map(|document| {
                let name = document.text("/metadata/name").unwrap();
                let source = document.source.as_deref().unwrap_or("-");
                let line = document.line_of(["metadata", "name"]);
                format!("{name} {} {line} {source}", document.line())
            })
            .collect();
        assert_eq!(
            told,
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
        let told = broken("apiVersion: v1\nkind: Pod\nmetadata: [\n");
        assert!(told.contains("YAML"), "{told}");
        let told = broken("a: 1\n---\napiVersion: v1\nkind: Pod\n");
        assert!(
            told.starts_with("1: ") && told.contains("apiVersion"),
            "{told}"
        );
        let told = broken("apiVersion: v1\nkind: Pod\n---\napiVersion: v1\n");
        assert!(told.starts_with("4: ") && told.contains("kind"), "{told}");
        let told = broken("apiVersion: v1\nkind: Pod\nkind: Pod\n");
        assert!(told.contains("duplicate"), "{told}");
        assert!(broken("just text\n").contains("apiVersion"));
        assert!(
            broken("apiVersion: v1\nkind: List\nitems: [1]\n").contains("no Kubernetes object")
        );
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
            documents(&" ".repeat(MOST_BYTES + 1)).unwrap_err(),
            ManifestError::TooLarge
        );
    }

    #[test]
    fn numbers_and_words_are_read_as_kubernetes_reads_them() {
        let text = "apiVersion: v1\nkind: X\nmode: 0644\nyes: 'on'\n1: one\nanchor: &a {b: c}\nalias: *a\n";
        let value = documents(text).unwrap().remove(0).value;
        assert_eq!(value["mode"], 420);
        assert_eq!(value["1"], "one");
        assert_eq!(value["alias"]["b"], "c");
    }
}
