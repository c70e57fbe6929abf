//! A strict JSON reader for the objects of a review.
//!
//! Duplicate keys are rejected, since two readers may each use a different one. `managedFields`,
//! often the largest part of an object, is skipped, but only in its proper place: a label or
//! annotation may have the same name. Strings are borrowed from the review, and objects are sorted
//! lists, so reading needs little memory and a lookup none.

use std::borrow::Cow;
use std::fmt;

use rolegate_core::text::bounded;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_json::value::RawValue;

/// Maximum number of characters of a key or a parser error in a message.
pub(crate) const MAX_SHOWN_CHARS: usize = 120;
/// The name of the field that contains `managedFields`.
const METADATA: &str = "metadata";
const MANAGED_FIELDS: &str = "managedFields";

/// A JSON value. Comparison ignores the order of fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Map(Map<'a>),
}

impl Node<'_> {
    /// Returns the string, if the value is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The fields of an object, each once.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Map<'a> {
    /// Sorted by key.
    fields: Vec<(Cow<'a, str>, Node<'a>)>,
}

impl<'a> Map<'a> {
    /// Returns the value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'a>> {
        let found = self
            .fields
            .binary_search_by(|(known, _)| (**known).cmp(key));
        self.fields.get(found.ok()?).map(|(_, value)| value)
    }

    /// Returns a mutable reference to the value of `key`.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node<'a>> {
        let mut fields = self.fields.iter_mut();
        fields
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }

    /// Drops the fields whose keys `keep` rejects.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.fields.retain(|(key, _)| keep(key));
    }

    /// Iterates over all fields, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node<'a>)> {
        self.fields.iter().map(|(key, value)| (&**key, value))
    }
}

/// Parses an object.
///
/// # Errors
/// Returns a message for invalid JSON, more than serde_json's 128 levels of nesting, or a duplicate
/// key.
pub(crate) fn parse(raw: &RawValue) -> Result<Node<'_>, String> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    Strict::Object
        .deserialize(&mut deserializer)
        .map_err(|error| bounded(&error.to_string(), MAX_SHOWN_CHARS))
}

/// Deserializes a value, given its position in the object.
#[derive(Clone, Copy)]
enum Strict {
    Object,
    Metadata,
    Elsewhere,
}

impl Strict {
    /// Returns the seed for the value of a field.
    fn field(self, key: &str) -> Self {
        match self {
            Self::Object if key == METADATA => Self::Metadata,
            _ => Self::Elsewhere,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Number::from_f64(value).map_or(Node::Null, Node::Number))
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(value.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Node<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element_seed(Self::Elsewhere)? {
            list.push(entry);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            let value = if matches!(self, Self::Metadata) && key == MANAGED_FIELDS {
                entries.next_value::<IgnoredAny>()?;
                Node::Null
            } else {
                entries.next_value_seed(self.field(&key))?
            };
            fields.push((key, value));
        }
        fields.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let twice = fields
            .array_windows()
            .find(|[(one, _), (other, _)]| one == other);
        match twice {
            Some([(key, _), _]) => Err(Error::custom(format_args!(
                "duplicate key {:?}",
                bounded(key, MAX_SHOWN_CHARS)
            ))),
            None => Ok(Node::Map(Map { fields })),
        }
    }
}

/// A key, borrowed if it contains no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns an object as it occurs in a review.
    pub(crate) fn raw(object: &impl ToString) -> Box<RawValue> {
        RawValue::from_string(object.to_string()).unwrap()
    }

    #[test]
    fn objects_round_trip() {
        let raw = raw(&r#"{"b":[1,-2,2.5,true,null,"x\n",{"c":{}}],"a":"y","managedFields":{}}"#);
        let text = |text: &'static str| Node::Text(text.into());
        let inner = Map {
            fields: vec![("c".into(), Node::Map(Map::default()))],
        };
        let list = vec![
            Node::Number(1.into()),
            Node::Number((-2).into()),
            Node::Number(Number::from_f64(2.5).unwrap()),
            Node::Bool(true),
            Node::Null,
            text("x\n"),
            Node::Map(inner),
        ];
        let Ok(Node::Map(map)) = parse(&raw) else {
            panic!("no object");
        };
        assert_eq!(map.get("a"), Some(&text("y")));
        assert_eq!(map.get("b"), Some(&Node::List(list)));
        assert_eq!(map.get("managedFields"), Some(&Node::Map(Map::default())));
        assert_eq!(map.get("c"), None);
        let keys: Vec<_> = map.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a", "b", "managedFields"]);
    }

    #[test]
    fn only_the_real_managed_fields_are_skipped() {
        let raw = raw(
            &r#"{"metadata":{"managedFields":[{"x":1}],"annotations":{"managedFields":"a"},
            "metadata":{"managedFields":"b"}},"spec":{"metadata":{"managedFields":"c"}},"managedFields":"d"}"#,
        );
        let object = parse(&raw).unwrap();
        let text = |path: &[&str]| {
            let mut here = &object;
            for name in path {
                let Node::Map(map) = here else {
                    panic!("{path:?}")
                };
                here = map.get(name).unwrap();
            }
            here.clone()
        };
        assert_eq!(text(&["metadata", "managedFields"]), Node::Null);
        for (path, value) in [
            (&["metadata", "annotations", "managedFields"][..], "a"),
            (&["metadata", "metadata", "managedFields"], "b"),
            (&["spec", "metadata", "managedFields"], "c"),
            (&["managedFields"], "d"),
        ] {
            assert_eq!(text(path).as_text(), Some(value), "{path:?}");
        }
    }

    #[test]
    fn the_order_of_fields_does_not_matter() {
        let (one, other) = (
            raw(&r#"{"a":1,"b":[{"x":"y","z":2}]}"#),
            raw(&r#"{"b":[{"z":2,"x":"\u0079"}],"a":1}"#),
        );
        assert_eq!(parse(&one), parse(&other));
        assert_ne!(
            parse(&one),
            parse(&raw(&r#"{"a":1,"b":[{"x":"y","z":3}]}"#))
        );
    }

    #[test]
    fn keys_that_are_there_twice_are_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"a":1,"b":2,"\u0061":3}]}"#,
            r#"{"managedFields":1,"managedFields":2}"#,
        ] {
            let error = parse(&raw(&text)).unwrap_err();
            assert!(error.contains("duplicate"), "{error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |levels: usize| raw(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
        assert!(parse(&deep(120)).is_ok());
        assert!(parse(&deep(200)).is_err());
        assert!(parse(&deep(100_000)).is_err());
    }
}
