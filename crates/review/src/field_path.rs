//! References to fields of an object, with the field path shown in messages.

use std::fmt;
use std::rc::Rc;

use rolegate_core::text::bounded;

use crate::json::{MAX_SHOWN_CHARS, Map, Node};

/// Maximum number of pod templates in one object.
pub(crate) const MAX_TEMPLATES: usize = 256;

/// A reference to a field. Its path is formatted only when it is reported.
#[derive(Debug, Clone)]
pub(crate) struct FieldRef<'a> {
    pub(crate) value: &'a Node<'a>,
    way: FieldPath<'a>,
}

/// The steps to a field, shared with the fields below it.
#[derive(Debug, Clone, Default, PartialEq)]
struct FieldPath<'a>(Option<Rc<(FieldPath<'a>, Step<'a>)>>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step<'a> {
    Field(&'a str),
    Entry(usize),
}

impl<'a> FieldPath<'a> {
    fn to(&self, step: Step<'a>) -> Self {
        Self(Some(Rc::new((self.clone(), step))))
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((way, step)) = self.0.as_deref() else {
            return Ok(());
        };
        way.fmt(f)?;
        match step {
            Step::Field(name) if way.0.is_none() => f.write_str(&bounded(name, MAX_SHOWN_CHARS)),
            Step::Field(name) => write!(f, ".{}", bounded(name, MAX_SHOWN_CHARS)),
            Step::Entry(index) => write!(f, "[{index}]"),
        }
    }
}

/// A field of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The field's path.
    pub(crate) path: String,
    /// The expected type.
    pub(crate) wanted: &'static str,
}

impl<'a> FieldRef<'a> {
    /// References the whole object, whose path is empty.
    pub(crate) fn root(value: &'a Node<'a>) -> Self {
        Self {
            value,
            way: FieldPath::default(),
        }
    }

    /// Formats the path for messages.
    pub(crate) fn path(&self) -> String {
        self.way.to_string()
    }

    /// Returns `true` if both have the same path, even in different objects.
    pub(crate) fn has_same_path(&self, other: &FieldRef<'_>) -> bool {
        self.way == other.way
    }

    /// References a field of an object. `None` if it is absent or null.
    pub(crate) fn field(&self, name: &'a str) -> Result<Option<Self>, Malformed> {
        Ok(self.value_of(name)?.map(|value| Self {
            value,
            way: self.way.to(Step::Field(name)),
        }))
    }

    /// Returns a field's value, or `None` if it is absent or null. A null has no fields, just as
    /// for the controllers that create pods from it.
    fn value_of(&self, name: &str) -> Result<Option<&'a Node<'a>>, Malformed> {
        match self.value {
            Node::Map(map) => Ok(map.get(name).filter(|value| **value != Node::Null)),
            Node::Null => Ok(None),
            _ => Err(self.malformed("an object")),
        }
    }

    /// References a nested field.
    pub(crate) fn at(&self, names: &[&'a str]) -> Result<Option<Self>, Malformed> {
        let mut here = self.clone();
        for name in names {
            match here.field(name)? {
                Some(next) => here = next,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// Returns a string field. `None` if it is absent, null or empty.
    pub(crate) fn text(&self, name: &'a str) -> Result<Option<&'a str>, Malformed> {
        match self.value_of(name)? {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(&**text).filter(|text| !text.is_empty())),
            Some(_) => Err(self.malformed_at(Step::Field(name), "a string")),
        }
    }

    /// Returns the entries of a list field. Empty if it is absent or null.
    pub(crate) fn list(&self, name: &'a str) -> Result<Vec<Self>, Malformed> {
        match self.field(name)? {
            None => Ok(Vec::new()),
            Some(place) => match place.value {
                Node::List(list) => Ok(place.numbered(list)),
                _ => Err(place.malformed("a list")),
            },
        }
    }

    /// Returns a field that maps strings to strings, such as annotations.
    pub(crate) fn texts(&self, name: &'a str) -> Result<StringMap<'a>, Malformed> {
        let Some(place) = self.field(name)? else {
            return Ok(StringMap::default());
        };
        let Node::Map(map) = place.value else {
            return Err(place.malformed("a map of strings"));
        };
        if let Some((key, _)) = map.iter().find(|(_, value)| text_of(value).is_none()) {
            return Err(Malformed {
                path: format!("{}[{}]", place.path(), bounded(key, MAX_SHOWN_CHARS)),
                wanted: "a string",
            });
        }
        Ok(StringMap(Some(map)))
    }

    /// Returns all fields that match a dotted path, where `*` stands for every entry of a list or
    /// map and `.` for the object itself.
    pub(crate) fn walk(&self, path: &'a str) -> Result<Vec<Self>, Malformed> {
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
                return Err(self.malformed("at most 256 templates"));
            }
            here = next;
        }
        Ok(here)
    }

    fn entries(&self) -> Result<Vec<Self>, Malformed> {
        match self.value {
            Node::List(list) => Ok(self.numbered(list)),
            Node::Map(map) => Ok(map
                .iter()
                .map(|(key, value)| Self {
                    value,
                    way: self.way.to(Step::Field(key)),
                })
                .collect()),
            Node::Null => Ok(Vec::new()),
            _ => Err(self.malformed("a list or map")),
        }
    }

    fn numbered(&self, list: &'a [Node<'a>]) -> Vec<Self> {
        let places = list.iter().enumerate().map(|(index, value)| Self {
            value,
            way: self.way.to(Step::Entry(index)),
        });
        places.collect()
    }

    /// Returns an error for a value of the wrong type.
    pub(crate) fn malformed(&self, wanted: &'static str) -> Malformed {
        Malformed {
            path: self.path(),
            wanted,
        }
    }

    fn malformed_at(&self, step: Step<'a>, wanted: &'static str) -> Malformed {
        Malformed {
            path: self.way.to(step).to_string(),
            wanted,
        }
    }
}

/// A validated map of strings.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StringMap<'a>(Option<&'a Map<'a>>);

impl<'a> StringMap<'a> {
    /// Returns the value of `key` unchanged.
    pub(crate) fn get(self, key: &str) -> Option<&'a str> {
        text_of(self.0?.get(key)?)
    }

    /// Iterates over all entries.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.into_iter().flat_map(Map::iter);
        all.filter_map(|(key, value)| Some((key, text_of(value)?)))
    }
}

/// Returns a value of a string map. The API server reads a null there as an empty string.
fn text_of<'a>(value: &'a Node<'_>) -> Option<&'a str> {
    match value {
        Node::Null => Some(""),
        value => value.as_text(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::parse;
    use crate::json::tests::raw;

    #[test]
    fn paths_lead_to_every_template() {
        let object = json!({"spec": {"specs": {"Chief": {"template": {"n": 1}},
            "Worker": {"template": {"n": 2}}, "None": {}}, "list": [{"t": {}}, {"t": null}],
            "nulls": [null, [{"t": {}}]]}});
        let object = raw(&object);
        let object = parse(&object).unwrap();
        let paths = |path: &'static str| {
            let all = FieldRef::root(&object).walk(path);
            all.map(|all| all.iter().map(FieldRef::path).collect::<Vec<_>>())
        };
        assert_eq!(
            paths("spec.specs.*.template").unwrap(),
            ["spec.specs.Chief.template", "spec.specs.Worker.template"]
        );
        assert_eq!(paths("spec.list.*.t").unwrap(), ["spec.list[0].t"]);
        assert_eq!(paths("spec.nulls.*.*.t").unwrap(), ["spec.nulls[1][0].t"]);
        assert_eq!(paths(".").unwrap(), [""]);
        assert_eq!(paths("spec.absent.*.x").unwrap(), [""; 0]);
        assert!(paths("spec.specs.Chief.template.n.x").is_err());
        let many = raw(&json!({"list": vec![json!({}); 300]}));
        let many = parse(&many).unwrap();
        assert!(FieldRef::root(&many).walk("list.*").is_err());
    }

    #[test]
    fn fields_of_two_objects_match_by_path() {
        let [one, other] = [json!({"list": [1, 2]}), json!({"list": [3, 4], "more": []})];
        let (one, other) = (raw(&one), raw(&other));
        let (one, other) = (parse(&one).unwrap(), parse(&other).unwrap());
        let ones = FieldRef::root(&one).list("list").unwrap();
        let others = FieldRef::root(&other).list("list").unwrap();
        assert!(ones[1].has_same_path(&others[1]));
        assert!(!ones[1].has_same_path(&others[0]));
        assert!(!ones[1].has_same_path(&FieldRef::root(&other)));
    }

    #[test]
    fn maps_of_texts_hold_texts_only() {
        for wrong in [json!([]), json!("x"), json!({"a": 1}), json!({"a": [null]})] {
            let object = raw(&json!({"annotations": wrong}));
            let object = parse(&object).unwrap();
            assert!(
                FieldRef::root(&object).texts("annotations").is_err(),
                "{wrong}"
            );
        }
        let object = raw(&json!({"annotations": null, "labels": {"a": "b", "c": null}}));
        let object = parse(&object).unwrap();
        let root = FieldRef::root(&object);
        assert_eq!(root.texts("annotations").unwrap().iter().count(), 0);
        let labels = root.texts("labels").unwrap();
        assert_eq!(
            (labels.get("a"), labels.get("c"), labels.get("d")),
            (Some("b"), Some(""), None)
        );
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "b"), ("c", "")]);
    }
}
