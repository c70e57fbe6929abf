//! The tree below `data`: data ConfigMaps at `data.<namespace>.<name>.<key>` and replicated objects
//! at `data.kubernetes.<resource>[.<namespace>].<name>`, in kube-mgmt's layout.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use regorus::Value;

use crate::analysis::Path;
use crate::error::LoadError;
use crate::input;
use crate::source::{PolicySource, Replicated};

/// The key of replicated objects. ConfigMaps of a namespace of this name are rejected.
pub(crate) const REPLICATED: &str = "kubernetes";

/// The tree and its size.
#[derive(Debug)]
pub(crate) struct DataTree {
    root: Value,
    /// Sizes of the values that were set, as JSON in bytes, by path. Path segments are joined by
    /// slashes, which no name contains.
    sizes: HashMap<Box<str>, u32>,
    bytes: usize,
    most: usize,
    /// Objects that could not be loaded, so the data that policies would read is incomplete.
    refused: BTreeSet<Path>,
    /// Objects omitted for lack of space, with their sizes as JSON in bytes, so the data that
    /// policies would read is incomplete.
    left_out: BTreeMap<Path, usize>,
    changed: BTreeSet<Path>,
}

impl DataTree {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            root: Value::new_object(),
            sizes: HashMap::new(),
            bytes: 0,
            most,
            refused: BTreeSet::new(),
            left_out: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Returns the paths where data is incomplete, with the reason. Policies that read them cannot
    /// be evaluated.
    pub(crate) fn faults(&self) -> BTreeMap<Path, String> {
        let refused = self.refused.iter().map(|path| {
            let why = format!(
                "data.{} could not be replicated: nested too deeply",
                path.join(".")
            );
            (path.clone(), why)
        });
        let wanted = self.wanted();
        let all = (wanted > self.most || !self.left_out.is_empty()).then(|| {
            let why = format!(
                "replicated objects and data take {wanted} bytes, more than {}: replicate fewer resources",
                self.most
            );
            (Path::new(), why)
        });
        refused.chain(all).collect()
    }

    /// Returns the total size in bytes, including omitted objects.
    fn wanted(&self) -> usize {
        self.bytes + self.left_out.values().sum::<usize>()
    }

    /// Returns the resources whose omitted objects would all fit now, so they must be replicated
    /// again.
    pub(crate) fn fit_again(&self) -> BTreeSet<String> {
        let fits = self.wanted() <= self.most;
        let resources = self.left_out.keys().filter_map(|path| path.get(1));
        resources.filter(|_| fits).cloned().collect()
    }

    /// Records an object that is omitted for lack of space.
    pub(crate) fn leave_out(
        &mut self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        bytes: usize,
    ) {
        let path = path_of(resource, namespace, name);
        self.remove(&path);
        self.note_change(path.clone());
        self.left_out.insert(path, bytes);
    }

    /// Returns the paths that changed since the previous call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<Path> {
        std::mem::take(&mut self.changed)
    }

    /// Loads a data ConfigMap. If it is invalid, the previous version stays.
    pub(crate) fn apply(&mut self, source: &PolicySource) -> Result<(), LoadError> {
        let place = source.id();
        if source.namespace == REPLICATED {
            return Err(LoadError::Data(format!(
                "{place}: data.{REPLICATED} is reserved for replicated objects: move the \
                 ConfigMap to another namespace"
            )));
        }
        let (mut entries, mut bytes) = (Value::new_object(), 0);
        for (key, text) in &source.entries {
            let invalid = |what: &str| LoadError::Data(format!("{place}: {key}: {what}"));
            bytes += key.len() + text.len();
            if bytes > self.most {
                return Err(invalid("the data exceeds the size limit"));
            }
            let parsed = parse(text).map_err(|what| invalid(&what))?;
            let entries = entries.as_object_mut().map_err(|_| invalid("not data"))?;
            entries.insert(Value::from(key.as_str()), parsed);
        }
        self.set(
            vec![source.namespace.clone(), source.name.clone()],
            entries,
            bytes,
        );
        Ok(())
    }

    /// Returns true if data of a ConfigMap, `namespace/name`, is loaded.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.sizes.contains_key(id)
    }

    pub(crate) fn delete(&mut self, namespace: &str, name: &str) {
        self.remove(&[namespace.to_owned(), name.to_owned()]);
    }

    /// Loads a replicated object.
    pub(crate) fn replicate(&mut self, replicated: &Replicated) {
        self.replicate_with(replicated, &mut Texts::default());
    }

    fn replicate_with(&mut self, replicated: &Replicated, texts: &mut Texts) {
        let path = path_of(
            &replicated.resource,
            replicated.namespace.as_deref(),
            &replicated.name,
        );
        let bytes = replicated.object.len();
        let before = self.sizes.get(&*joined(&path)).copied().unwrap_or(0);
        if self.bytes + bytes > self.most + before as usize {
            self.leave_out(
                &replicated.resource,
                replicated.namespace.as_deref(),
                &replicated.name,
                bytes,
            );
            return;
        }
        self.left_out.remove(&path);
        // Deeply nested objects do not parse.
        let Ok(value) = serde_json::from_str(&replicated.object) else {
            self.remove(&path);
            self.refused.insert(path);
            return;
        };
        self.refused.remove(&path);
        self.set(path, texts.shared(value), bytes);
    }

    pub(crate) fn forget(&mut self, resource: &str, namespace: Option<&str>, name: &str) {
        self.remove(&path_of(resource, namespace, name));
    }

    /// Replaces all objects of a resource.
    pub(crate) fn replicate_all<'a>(
        &mut self,
        resource: &str,
        objects: impl IntoIterator<Item = &'a Replicated>,
    ) {
        let start = of_resource(resource);
        let below = format!("{}/", joined(&start));
        let gone = self.sizes.extract_if(|path, _| path.starts_with(&below));
        self.bytes -= gone.map(|(_, size)| size as usize).sum::<usize>();
        self.refused.retain(|path| !path.starts_with(&start));
        self.left_out.retain(|path, _| !path.starts_with(&start));
        self.changed.insert(start.clone());
        unset(&mut self.root, &start);
        let mut texts = Texts::default();
        for object in objects {
            self.replicate_with(object, &mut texts);
        }
    }

    fn set(&mut self, path: Path, value: Value, bytes: usize) {
        let mut at = &mut self.root;
        for part in &path {
            let key = Value::from(part.as_str());
            if at.as_object().is_err() {
                *at = Value::new_object();
            }
            let Ok(object) = at.as_object_mut() else {
                return;
            };
            at = object.get_or_insert_with(key, Value::new_object);
        }
        *at = value;
        // The API server accepts nothing close to 4 GiB.
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let before = self.sizes.insert(joined(&path).into(), size).unwrap_or(0);
        self.bytes = self.bytes + size as usize - before as usize;
        self.note_change(path);
    }

    /// Records a change at a path, unless one above it is already recorded.
    fn note_change(&mut self, path: Path) {
        let mut starts = (1..path.len()).filter_map(|length| path.get(..length));
        if !starts.any(|start| self.changed.contains(start)) {
            self.changed.insert(path);
        }
    }

    fn remove(&mut self, path: &[String]) {
        self.refused.remove(path);
        self.left_out.remove(path);
        if let Some(size) = self.sizes.remove(&*joined(path)) {
            self.bytes -= size as usize;
            unset(&mut self.root, path);
            self.note_change(path.to_vec());
        }
    }

    /// Returns the parts of the tree at some paths, sharing their values.
    pub(crate) fn project(&self, paths: &BTreeSet<Path>) -> Value {
        if paths.iter().any(Vec::is_empty) {
            return self.root.clone();
        }
        let mut projected = Value::new_object();
        for path in paths {
            copy(&self.root, &mut projected, path);
        }
        projected
    }
}

/// Copies the value at a path, if it exists.
fn copy(from: &Value, to: &mut Value, path: &[String]) {
    let (Some((part, rest)), Value::Object(object)) = (path.split_first(), from) else {
        *to = from.clone();
        return;
    };
    let key = Value::from(part.as_str());
    let (Some(child), Ok(object)) = (object.get(&key), to.as_object_mut()) else {
        return;
    };
    copy(
        child,
        object.get_or_insert_with(key, Value::new_object),
        rest,
    );
}

fn unset(root: &mut Value, path: &[String]) {
    let Some((part, rest)) = path.split_first() else {
        return;
    };
    let key = Value::from(part.as_str());
    let Ok(object) = root.as_object_mut() else {
        return;
    };
    if rest.is_empty() {
        object.remove(&key);
    } else if let Some(child) = object.get_mut(&key) {
        unset(child, rest);
        if child.as_object().is_ok_and(|child| child.is_empty()) {
            object.remove(&key);
        }
    }
}

fn joined(path: &[String]) -> String {
    path.join("/")
}

fn path_of(resource: &str, namespace: Option<&str>, name: &str) -> Path {
    [REPLICATED, resource]
        .into_iter()
        .chain(namespace)
        .chain([name])
        .map(str::to_owned)
        .collect()
}

/// Interns strings that many objects of a kind share, such as field names.
#[derive(Default)]
struct Texts(HashSet<Arc<str>>);

impl Texts {
    /// Longer strings are unlikely to be shared.
    const MAX_SHARED_BYTES: usize = 64;

    /// Returns the value with interned strings.
    fn shared(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) if text.len() <= Self::MAX_SHARED_BYTES => {
                Value::String(self.known(text))
            }
            Value::Array(items) => {
                let items = items.iter().cloned().map(|item| self.shared(item));
                Value::from(items.collect::<Vec<_>>())
            }
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| {
                    let (key, value) = (key.clone(), value.clone());
                    (self.shared(key), self.shared(value))
                });
                compact(fields.collect())
            }
            other => other,
        }
    }

    fn known(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(known) = self.0.get(&text) {
            return known.clone();
        }
        self.0.insert(text.clone());
        text
    }
}

/// Returns an object in its most compact representation.
fn compact(fields: BTreeMap<Value, Value>) -> Value {
    match Value::from(fields) {
        Value::Object(object) => Arc::unwrap_or_clone(object).into_value(),
        other => other,
    }
}

/// Parses JSON, as kube-mgmt does, or else YAML.
fn parse(text: &str) -> Result<Value, String> {
    match Value::from_json_str(text) {
        Ok(value) => Ok(value),
        Err(json) => match serde_saphyr::from_str::<serde_json::Value>(text) {
            Ok(value) if input::is_too_deep(&value) => Err("nested too deep".into()),
            // Any text is valid YAML, so text that starts with a brace or bracket is treated as
            // broken JSON.
            Ok(serde_json::Value::String(_)) if text.trim_start().starts_with(['{', '[', '"']) => {
                Err(crate::text::clean(&json.to_string(), 256))
            }
            Ok(value) => Ok(Value::from(value)),
            Err(_) => Err(crate::text::clean(&json.to_string(), 256)),
        },
    }
}

/// Returns true if a change at one path is visible at another.
pub(crate) fn touches(changed: &BTreeSet<Path>, read: &BTreeSet<Path>) -> bool {
    changed.iter().any(|changed| are_related(changed, read))
}

/// Returns true if a path is a prefix of one of the others, or the reverse.
pub(crate) fn are_related(path: &[String], others: &BTreeSet<Path>) -> bool {
    let mut others = others.iter();
    others.any(|other| path.starts_with(other) || other.starts_with(path))
}

/// Returns the path of a resource's objects.
pub(crate) fn of_resource(resource: &str) -> Path {
    [REPLICATED, resource].map(str::to_owned).into()
}

/// Returns the ID of a ConfigMap from its namespace and name.
pub(crate) fn id(namespace: &str, name: &str) -> Arc<str> {
    format!("{namespace}/{name}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeply_nested_documents_are_rejected() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(&nested(100)).is_ok());
        assert!(parse(&nested(200)).is_err());
    }
}
