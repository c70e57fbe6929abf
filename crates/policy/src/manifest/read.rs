//! YAML and JSON as values with the lines of their parts, and faults of a text in plain words.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Error, Spanned};

use super::{Lines, MOST_DEPTH, MOST_EVENTS, MOST_OBJECTS, MOST_REPLAYED, ManifestError};
use crate::text::plain;

/// All documents of a text with their lines, and whether it is JSON that repeats a key.
pub(super) fn nodes(text: &str) -> Result<(Vec<(Value, Lines)>, bool), ManifestError> {
    match serde_saphyr::from_multiple_with_options::<Node>(text, options()) {
        Ok(nodes) => {
            let nodes = nodes.into_iter().map(|node| (node.value, node.lines));
            Ok((nodes.collect(), false))
        }
        // Some JSON is not YAML, such as surrogate pairs in escapes and duplicate keys.
        Err(error) => match from_json(text) {
            Some(values) => Ok((
                values,
                matches!(inner(&error), Error::DuplicateMappingKey { .. }),
            )),
            None => Err(fault(text, &error)),
        },
    }
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

/// The error beneath what only says where it stands.
fn inner(error: &Error) -> &Error {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => inner(error),
        error => error,
    }
}

fn fault(text: &str, error: &Error) -> ManifestError {
    let line = error.location().map_or(0, |place| place.line());
    if text.contains("{{") {
        return ManifestError::Template { line };
    }
    let message = match inner(error) {
        Error::Message { msg, .. } => plain(msg.lines().next().unwrap_or_default()),
        Error::ExternalMessage { msg, .. } => plain(msg.lines().next().unwrap_or_default()),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {} is there twice", plain(key))
        }
        Error::SerdeInvalidType { unexpected, .. } => {
            format!("{} does not belong here", plain(unexpected))
        }
        Error::UnsupportedTag { tag, .. } => format!("the tag {} is not known", plain(tag)),
        other => clause(other).to_owned(),
    };
    ManifestError::Syntax { line, message }
}

/// Faults in words of YAML; what the reader says of them is about itself.
fn clause(error: &Error) -> &'static str {
    match error {
        Error::DuplicateMappingKey { .. } => "a key is there twice",
        Error::Eof { .. } => "it ends before it is complete",
        Error::Unexpected { .. } | Error::SerdeInvalidValue { .. } => "a key must be a text",
        Error::NonFiniteFloat { .. } => "it has a number that JSON has not",
        Error::UnknownAnchor { .. } => "an alias names an anchor that is not there before it",
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "an alias stands in what it stands for"
        }
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "its aliases stand for too much",
        Error::MergeValueNotMapOrSeqOfMaps { .. } | Error::MergeKeyNotAllowed { .. } => {
            "what << merges must be maps"
        }
        Error::InvalidBinaryBase64 { .. } | Error::BinaryNotUtf8 { .. } => {
            "what is tagged !!binary must be a text in base64"
        }
        Error::FoldedBlockScalarMustIndentContent { .. } | Error::IndentationError { .. } => {
            "its indentation is not YAML's"
        }
        Error::InvalidUtf8Input => "it is not text (UTF-8)",
        Error::Budget { breach, .. } => match breach {
            serde_saphyr::budget::BudgetBreach::Depth { .. } => "it is nested too deep",
            serde_saphyr::budget::BudgetBreach::Aliases { .. }
            | serde_saphyr::budget::BudgetBreach::Anchors { .. } => "it has too many aliases",
            serde_saphyr::budget::BudgetBreach::Documents { .. } => "it has too many documents",
            serde_saphyr::budget::BudgetBreach::RecordedAnchorEvents { .. } => {
                "its aliases stand for too much"
            }
            _ => "it has too many parts",
        },
        _ => "this cannot be read here",
    }
}

fn from_json(text: &str) -> Option<Vec<(Value, Lines)>> {
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
            value.ok().map(|value| (value, lines))
        })
        .collect()
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
