//! Objects as they are judged: JSON read once, strictly, and walked by paths.
//!
//! A key that is there twice is refused: two readers may each take another of them. The record of
//! who manages which field, often the largest part of an object, is skipped.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::text::shown;

/// Most characters of a key or of a parser's complaint in a message.
const SHOWN: usize = 120;
/// Most templates that one object may hold.
pub(crate) const MAX_TEMPLATES: usize = 256;

/// Reads an object.
///
/// # Errors
/// A sentence: not JSON, nested deeper than serde_json's 128 levels, or a key twice.
pub(crate) fn parse(raw: &RawValue) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    Strict
        .deserialize(&mut deserializer)
        .map_err(|error| shown(&error.to_string(), SHOWN))
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element_seed(Strict)? {
            list.push(entry);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let twice = if key == "managedFields" {
                entries.next_value::<IgnoredAny>()?;
                map.insert(key, Value::Null)
            } else {
                let value = entries.next_value_seed(Strict)?;
                if map.contains_key(&key) {
                    return Err(Error::custom(format_args!(
                        "key {:?} is there twice",
                        shown(&key, SHOWN)
                    )));
                }
                map.insert(key, value)
            };
            if twice.is_some() {
                return Err(Error::custom("key \"managedFields\" is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// A place in an object: its value, and its path as messages name it.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    pub(crate) path: String,
    pub(crate) value: &'a Value,
}

/// Something that is not what its kind has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Where.
    pub(crate) path: String,
    /// What belongs there.
    pub(crate) wanted: &'static str,
}

impl<'a> Place<'a> {
    /// The whole object, whose path is empty.
    pub(crate) fn root(value: &'a Value) -> Self {
        Self {
            path: String::new(),
            value,
        }
    }

    fn step(&self, name: &str) -> String {
        let name = shown(name, SHOWN);
        if self.path.is_empty() {
            name
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// A field of an object; `None` where it is absent or null.
    pub(crate) fn field(&self, name: &str) -> Result<Option<Self>, Malformed> {
        let Value::Object(map) = self.value else {
            return Err(self.malformed("an object"));
        };
        let value = map.get(name).filter(|value| !value.is_null());
        Ok(value.map(|value| Self {
            path: self.step(name),
            value,
        }))
    }

    /// A field of a field of this.
    pub(crate) fn at(&self, names: &[&str]) -> Result<Option<Self>, Malformed> {
        let mut here = self.clone();
        for name in names {
            match here.field(name)? {
                Some(next) => here = next,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// The text of a field; `None` where it is absent, null or empty.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, Malformed> {
        let Some(place) = self.field(name)? else {
            return Ok(None);
        };
        match place.value {
            Value::String(text) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            _ => Err(place.malformed("a string")),
        }
    }

    /// The entries of a field that is a list; none where it is absent or null.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<Self>, Malformed> {
        let Some(place) = self.field(name)? else {
            return Ok(Vec::new());
        };
        let Value::Array(all) = place.value else {
            return Err(place.malformed("a list"));
        };
        Ok(all
            .iter()
            .enumerate()
            .map(|(index, value)| Self {
                path: format!("{}[{index}]", place.path),
                value,
            })
            .collect())
    }

    /// A field that maps texts to texts, such as annotations.
    pub(crate) fn texts(&self, name: &str) -> Result<Texts<'a>, Malformed> {
        let Some(place) = self.field(name)? else {
            return Ok(Texts::default());
        };
        let Value::Object(map) = place.value else {
            return Err(place.malformed("a map of strings"));
        };
        if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
            return Err(Malformed {
                path: format!("{}[{}]", place.path, shown(key, SHOWN)),
                wanted: "a string",
            });
        }
        Ok(Texts(Some(map)))
    }

    /// All places that a dotted path leads to, where `*` stands for every entry of a list or map
    /// and `.` for the object itself.
    pub(crate) fn walk(&self, path: &str) -> Result<Vec<Self>, Malformed> {
        let mut here = vec![self.clone()];
        for name in path.split('.').filter(|name| !name.is_empty()) {
            let mut next = Vec::new();
            for place in &here {
                if name == "*" {
                    next.extend(place.entries()?);
                } else {
                    next.extend(place.field(name)?);
                }
            }
            if next.len() > MAX_TEMPLATES {
                return Err(self.malformed("less than 257 templates"));
            }
            here = next;
        }
        Ok(here)
    }

    fn entries(&self) -> Result<Vec<Self>, Malformed> {
        match self.value {
            Value::Array(all) => Ok(all
                .iter()
                .enumerate()
                .map(|(index, value)| Self {
                    path: format!("{}[{index}]", self.path),
                    value,
                })
                .collect()),
            Value::Object(map) => Ok(map
                .iter()
                .map(|(key, value)| Self {
                    path: self.step(key),
                    value,
                })
                .collect()),
            _ => Err(self.malformed("a list or map")),
        }
    }

    /// That something else belongs here.
    pub(crate) fn malformed(&self, wanted: &'static str) -> Malformed {
        Malformed {
            path: self.path.clone(),
            wanted,
        }
    }
}

/// A map of texts that was checked to be one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Texts<'a>(Option<&'a Map<String, Value>>);

impl<'a> Texts<'a> {
    /// The value of `key`, as it is.
    pub(crate) fn get(self, key: &str) -> Option<&'a str> {
        self.0?.get(key)?.as_str()
    }

    /// All pairs.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.into_iter().flatten();
        all.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        parse(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let text = r#"{"a":[1,-2,2.5,true,null,"x",{"b":{}}],"managedFields":null}"#;
        assert_eq!(read(text), Ok(serde_json::from_str(text).unwrap()));
        let managed = read(r#"{"metadata":{"managedFields":[{"f:x":{"f:y":{}}}]}}"#).unwrap();
        assert_eq!(managed, json!({"metadata": {"managedFields": null}}));
    }

    #[test]
    fn keys_that_are_there_twice_are_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"a":1,"b":2,"\u0061":3}]}"#,
            r#"{"managedFields":1,"managedFields":2}"#,
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains("twice"), "{error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&deep(120)).is_ok());
        assert!(read(&deep(200)).is_err());
        assert!(read(&deep(100_000)).is_err());
    }

    #[test]
    fn paths_lead_to_every_template() {
        let object = json!({"spec": {"specs": {"Chief": {"template": {"n": 1}},
            "Worker": {"template": {"n": 2}}, "None": {}}, "list": [{"t": {}}, {"t": null}]}});
        let paths = |path: &str| {
            let all = Place::root(&object).walk(path);
            all.map(|all| all.into_iter().map(|at| at.path).collect::<Vec<_>>())
        };
        assert_eq!(
            paths("spec.specs.*.template").unwrap(),
            ["spec.specs.Chief.template", "spec.specs.Worker.template"]
        );
        assert_eq!(paths("spec.list.*.t").unwrap(), ["spec.list[0].t"]);
        assert_eq!(paths(".").unwrap(), [""]);
        assert_eq!(paths("spec.absent.*.x").unwrap(), [""; 0]);
        assert!(paths("spec.specs.Chief.template.n.x").is_err());
        let many = json!({"list": vec![json!({}); 300]});
        assert!(Place::root(&many).walk("list.*").is_err());
    }

    #[test]
    fn maps_of_texts_hold_texts_only() {
        for wrong in [json!([]), json!("x"), json!({"a": 1}), json!({"a": null})] {
            let object = json!({"annotations": wrong});
            assert!(
                Place::root(&object).texts("annotations").is_err(),
                "{wrong}"
            );
        }
        let object = json!({"annotations": null, "labels": {"a": "b"}});
        let root = Place::root(&object);
        assert_eq!(root.texts("annotations").unwrap().iter().count(), 0);
        assert_eq!(root.texts("labels").unwrap().get("a"), Some("b"));
    }
}
