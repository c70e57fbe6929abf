//! Places in an object, walked by names, with the path that messages name them by.

use std::fmt;
use std::rc::Rc;

use crate::json::{Map, Node, SHOWN};
use crate::text::shown;

/// Most templates that one object may hold.
pub(crate) const MAX_TEMPLATES: usize = 256;

/// A place in an object. Its path is written out only when somebody is told it.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    pub(crate) value: &'a Node<'a>,
    way: Way<'a>,
}

/// The steps that lead to a place, shared by all places that they lead through.
#[derive(Debug, Clone, Default, PartialEq)]
struct Way<'a>(Option<Rc<(Way<'a>, Step<'a>)>>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step<'a> {
    Field(&'a str),
    Entry(usize),
}

impl<'a> Way<'a> {
    fn to(&self, step: Step<'a>) -> Self {
        Self(Some(Rc::new((self.clone(), step))))
    }
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((way, step)) = self.0.as_deref() else {
            return Ok(());
        };
        way.fmt(f)?;
        match step {
            Step::Field(name) if way.0.is_none() => f.write_str(&shown(name, SHOWN)),
            Step::Field(name) => write!(f, ".{}", shown(name, SHOWN)),
            Step::Entry(index) => write!(f, "[{index}]"),
        }
    }
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
    pub(crate) fn root(value: &'a Node<'a>) -> Self {
        Self {
            value,
            way: Way::default(),
        }
    }

    /// The path, as messages name it.
    pub(crate) fn path(&self) -> String {
        self.way.to_string()
    }

    /// Whether both are at the same path, be it of different objects.
    pub(crate) fn is_beside(&self, other: &Place<'_>) -> bool {
        self.way == other.way
    }

    /// A field of an object; `None` where it is absent or null.
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

    /// A field of a field of this.
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

    /// The text of a field; `None` where it is absent, null or empty.
    pub(crate) fn text(&self, name: &'a str) -> Result<Option<&'a str>, Malformed> {
        match self.value_of(name)? {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(&**text).filter(|text| !text.is_empty())),
            Some(_) => Err(self.malformed_at(Step::Field(name), "a string")),
        }
    }

    /// The entries of a field that is a list; none where it is absent or null.
    pub(crate) fn list(&self, name: &'a str) -> Result<Vec<Self>, Malformed> {
        match self.field(name)? {
            None => Ok(Vec::new()),
            Some(place) => match place.value {
                Node::List(list) => Ok(place.numbered(list)),
                _ => Err(place.malformed("a list")),
            },
        }
    }

    /// A field that maps texts to texts, such as annotations.
    pub(crate) fn texts(&self, name: &'a str) -> Result<Texts<'a>, Malformed> {
        let Some(place) = self.field(name)? else {
            return Ok(Texts::default());
        };
        let Node::Map(map) = place.value else {
            return Err(place.malformed("a map of strings"));
        };
        if let Some((key, _)) = map.iter().find(|(_, value)| text_of(value).is_none()) {
            return Err(Malformed {
                path: format!("{}[{}]", place.path(), shown(key, SHOWN)),
                wanted: "a string",
            });
        }
        Ok(Texts(Some(map)))
    }

    /// All places that a dotted path leads to, where `*` stands for every entry of a list or map
    /// and `.` for the object itself.
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
                return Err(self.malformed("less than 257 templates"));
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

    /// That something else belongs here.
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

/// A map of texts that was checked to be one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Texts<'a>(Option<&'a Map<'a>>);

impl<'a> Texts<'a> {
    /// The value of `key`, as it is.
    pub(crate) fn get(self, key: &str) -> Option<&'a str> {
        text_of(self.0?.get(key)?)
    }

    /// All pairs.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.into_iter().flat_map(Map::iter);
        all.filter_map(|(key, value)| Some((key, text_of(value)?)))
    }
}

/// A text of a map of texts. The API server reads a null there as an empty one.
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
            "Worker": {"template": {"n": 2}}, "None": {}}, "list": [{"t": {}}, {"t": null}]}});
        let object = raw(&object);
        let object = parse(&object).unwrap();
        let paths = |path: &'static str| {
            let all = Place::root(&object).walk(path);
            all.map(|all| all.iter().map(Place::path).collect::<Vec<_>>())
        };
        assert_eq!(
            paths("spec.specs.*.template").unwrap(),
            ["spec.specs.Chief.template", "spec.specs.Worker.template"]
        );
        assert_eq!(paths("spec.list.*.t").unwrap(), ["spec.list[0].t"]);
        assert_eq!(paths(".").unwrap(), [""]);
        assert_eq!(paths("spec.absent.*.x").unwrap(), [""; 0]);
        assert!(paths("spec.specs.Chief.template.n.x").is_err());
        let many = raw(&json!({"list": vec![json!({}); 300]}));
        let many = parse(&many).unwrap();
        assert!(Place::root(&many).walk("list.*").is_err());
    }

    #[test]
    fn places_of_two_objects_are_beside_each_other_by_their_path() {
        let [one, other] = [json!({"list": [1, 2]}), json!({"list": [3, 4], "more": []})];
        let (one, other) = (raw(&one), raw(&other));
        let (one, other) = (parse(&one).unwrap(), parse(&other).unwrap());
        let ones = Place::root(&one).list("list").unwrap();
        let others = Place::root(&other).list("list").unwrap();
        assert!(ones[1].is_beside(&others[1]));
        assert!(!ones[1].is_beside(&others[0]));
        assert!(!ones[1].is_beside(&Place::root(&other)));
    }

    #[test]
    fn maps_of_texts_hold_texts_only() {
        for wrong in [json!([]), json!("x"), json!({"a": 1}), json!({"a": [null]})] {
            let object = raw(&json!({"annotations": wrong}));
            let object = parse(&object).unwrap();
            assert!(
                Place::root(&object).texts("annotations").is_err(),
                "{wrong}"
            );
        }
        let object = raw(&json!({"annotations": null, "labels": {"a": "b", "c": null}}));
        let object = parse(&object).unwrap();
        let root = Place::root(&object);
        assert_eq!(root.texts("annotations").unwrap().iter().count(), 0);
        let labels = root.texts("labels").unwrap();
        assert_eq!(
            (labels.get("a"), labels.get("c"), labels.get("d")),
            (Some("b"), Some(""), None)
        );
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "b"), ("c", "")]);
    }
}
