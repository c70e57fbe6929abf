//! The values of rolegate's chart, and the notes about the translation.

use serde_json::{Map, Value};

use crate::note::{Note, NoteKind};

/// The new values and notes, while a translation collects them.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// The values of rolegate's chart.
    pub(crate) values: Map<String, Value>,
    /// The notes, in the order of the translation.
    pub(crate) notes: Vec<Note>,
}

impl Output {
    /// Sets the value at a path such as `agent.appPort`.
    pub(crate) fn set(&mut self, path: &str, value: impl Into<Value>) {
        if let Some(slot) = self.slot(path) {
            *slot = value.into();
        }
    }

    /// Sets a key of the map at a path. The key may contain dots.
    pub(crate) fn insert(&mut self, path: &str, key: &str, value: impl Into<Value>) {
        if let Some(slot) = self.slot(path) {
            match slot {
                Value::Object(map) => {
                    map.insert(key.to_owned(), value.into());
                }
                other => *other = Value::Object(Map::from_iter([(key.to_owned(), value.into())])),
            }
        }
    }

    /// Appends an item to the list at a path.
    pub(crate) fn push(&mut self, path: &str, item: impl Into<Value>) {
        if let Some(slot) = self.slot(path) {
            match slot {
                Value::Array(list) => list.push(item.into()),
                other => *other = Value::Array(vec![item.into()]),
            }
        }
    }

    /// Adds a flag to the `extraArgs` of a component, once.
    pub(crate) fn arg(&mut self, component: &str, argument: &str) {
        let path = format!("{component}.extraArgs");
        let is_known = self
            .slot(&path)
            .and_then(|slot| slot.as_array())
            .is_some_and(|list| list.iter().any(|known| known == argument));
        if !is_known {
            self.push(&path, argument);
        }
    }

    /// Notes a value that is carried over with another name, form or meaning.
    pub(crate) fn changed(&mut self, from: &str, to: &str, message: impl Into<String>) {
        self.note(NoteKind::Changed, from, Some(to), message);
    }

    /// Notes a value that rolegate does without.
    pub(crate) fn dropped(&mut self, from: &str, message: impl Into<String>) {
        self.note(NoteKind::Dropped, from, None, message);
    }

    /// Notes a value that needs a decision.
    pub(crate) fn action(&mut self, from: &str, message: impl Into<String>) {
        self.note(NoteKind::Action, from, None, message);
    }

    fn note(&mut self, kind: NoteKind, from: &str, to: Option<&str>, message: impl Into<String>) {
        self.notes.push(Note {
            kind,
            from: from.to_owned(),
            to: to.map(str::to_owned),
            message: message.into(),
            pods: Vec::new(),
        });
    }

    /// Returns the place of a value, with the maps above it. `None` only if a value above it is not
    /// a map, which the translations never set.
    fn slot(&mut self, path: &str) -> Option<&mut Value> {
        let (parents, last) = match path.rsplit_once('.') {
            Some((parents, last)) => (parents.split('.').collect(), last),
            None => (Vec::new(), path),
        };
        let mut here = &mut self.values;
        for parent in parents {
            let next = here
                .entry(parent.to_owned())
                .or_insert_with(|| Value::Object(Map::new()));
            here = next.as_object_mut()?;
        }
        Some(here.entry(last.to_owned()).or_insert(Value::Null))
    }
}
