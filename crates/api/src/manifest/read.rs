//! Parses YAML and JSON into values with line numbers, and describes syntax errors.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Error, Spanned};

use super::{Lines, MAX_DEPTH, MAX_EVENTS, MAX_OBJECTS, MAX_REPLAYED_EVENTS, ManifestError};
use rolegate_core::text::plain;

/// Parses all documents of a text with their lines, and whether it is JSON with a duplicate key.
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
            max_documents: MAX_OBJECTS,
            max_depth: MAX_DEPTH,
            max_events: MAX_EVENTS,
            max_nodes: MAX_EVENTS,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: MAX_REPLAYED_EVENTS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
            max_replay_stack_depth: 16,
        },
        // As Kubernetes reads them: `0644` is octal.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// Returns the error inside wrappers that only add a location.
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
            format!("duplicate key {}", plain(key))
        }
        Error::SerdeInvalidType { unexpected, .. } => {
            format!("unexpected {}", plain(unexpected))
        }
        Error::UnsupportedTag { tag, .. } => format!("unknown tag {}", plain(tag)),
        other => clause(other).to_owned(),
    };
    ManifestError::Syntax { line, message }
}

/// Describes an error in terms of YAML. The parser's own messages are about the parser.
fn clause(error: &Error) -> &'static str {
    match error {
        Error::DuplicateMappingKey { .. } => "duplicate key",
        Error::Eof { .. } => "unexpected end of the document",
        Error::Unexpected { .. } | Error::SerdeInvalidValue { .. } => "keys must be strings",
        Error::NonFiniteFloat { .. } => "a number that JSON does not support",
        Error::UnknownAnchor { .. } => "an alias refers to an undefined anchor",
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "an alias refers to a node that contains it"
        }
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "its aliases expand to too much",
        Error::MergeValueNotMapOrSeqOfMaps { .. } | Error::MergeKeyNotAllowed { .. } => {
            "<< can merge only maps"
        }
        Error::InvalidBinaryBase64 { .. } | Error::BinaryNotUtf8 { .. } => {
            "values with the tag !!binary must be base64"
        }
        Error::FoldedBlockScalarMustIndentContent { .. } | Error::IndentationError { .. } => {
            "invalid indentation"
        }
        Error::InvalidUtf8Input => "it is not UTF-8 text",
        Error::Budget { breach, .. } => match breach {
            serde_saphyr::budget::BudgetBreach::Depth { .. } => "it is nested too deeply",
            serde_saphyr::budget::BudgetBreach::Aliases { .. }
            | serde_saphyr::budget::BudgetBreach::Anchors { .. } => "it has too many aliases",
            serde_saphyr::budget::BudgetBreach::Documents { .. } => "it has too many documents",
            serde_saphyr::budget::BudgetBreach::RecordedAnchorEvents { .. } => {
                "its aliases expand to too much"
            }
            _ => "it has too many parts",
        },
        _ => "syntax error",
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

/// A value with line numbers, while it is parsed.
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
        f.write_str("a value that JSON supports")
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
        scalar(number.ok_or_else(|| E::custom("a number that JSON does not support"))?)
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
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
            parts.push((key, lines));
        }
        Ok(Parts {
            value: values.into(),
            parts,
        })
    }
}
