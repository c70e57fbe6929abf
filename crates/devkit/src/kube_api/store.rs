//! The objects, their versions and the history of their changes.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::select::Selector;
use super::{Failure, Query};
use crate::ids;

pub(super) const PODS: &str = "pods";
pub(super) const NAMESPACES: &str = "namespaces";
pub(super) const NODES: &str = "nodes";
const CONFIG_MAPS: &str = "configmaps";

/// The state of the server, with one version counter for all resources.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    /// The number of times that all watches were ended.
    epoch: u64,
    delay: Duration,
    history: usize,
    tables: BTreeMap<String, Table>,
}

/// The objects of one resource by namespace and name.
#[derive(Debug)]
pub(super) struct Table {
    api_version: String,
    kind: String,
    namespaced: bool,
    objects: BTreeMap<Key, Arc<Value>>,
    changes: VecDeque<Change>,
    /// The oldest version from which a watch can resume.
    floor: u64,
}

type Key = (String, String);

/// A change of one object. Both states are kept, since a watch with a selector may see a modified
/// object as added or deleted.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    /// The time from which watches may see it.
    pub(super) due: Instant,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) version: u64,
    pub(super) objects: Vec<Arc<Value>>,
    /// The `continue` token; empty on the last page.
    pub(super) next: String,
}

impl Store {
    pub(super) fn new(history: usize) -> Self {
        // A restarted server must not reuse versions, so they start with the clock, as if this
        // server had run since 1970.
        let version = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(1);
        let mut store = Self {
            version,
            epoch: 0,
            delay: Duration::ZERO,
            history,
            tables: BTreeMap::new(),
        };
        for (name, kind, namespaced) in [
            (PODS, "Pod", true),
            (NAMESPACES, "Namespace", false),
            (NODES, "Node", false),
            (CONFIG_MAPS, "ConfigMap", true),
        ] {
            store.enable(name, "v1", kind, namespaced);
        }
        store
    }

    /// Enables a resource. Existing objects stay.
    pub(super) fn enable(&mut self, name: &str, api_version: &str, kind: &str, namespaced: bool) {
        let floor = self.version;
        self.tables.entry(name.to_owned()).or_insert_with(|| Table {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            objects: BTreeMap::new(),
            changes: VecDeque::new(),
            floor,
        });
    }

    /// Removes a resource and its objects. Returns false if it is unknown.
    pub(super) fn disable(&mut self, name: &str) -> bool {
        self.tables.remove(name).is_some()
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (&str, &Table)> {
        self.tables.iter().map(|(name, table)| (&**name, table))
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn table(&self, resource: &str) -> Result<&Table, Failure> {
        self.tables
            .get(resource)
            .ok_or_else(|| Failure::new(404, "the server could not find the requested resource"))
    }

    pub(super) fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    pub(super) fn drop_watches(&mut self) {
        self.epoch += 1;
    }

    pub(super) fn expire(&mut self) {
        self.epoch += 1;
        self.version += 1;
        for table in self.tables.values_mut() {
            table.changes.clear();
            table.floor = self.version;
        }
    }

    /// Adds or replaces an object. UID and creation time stay while it exists, and each change of
    /// its `spec` is a new generation.
    pub(super) fn put(&mut self, resource: &str, mut object: Value) -> Value {
        let key = key(&object);
        let before = self
            .tables
            .get(resource)
            .and_then(|table| table.objects.get(&key))
            .cloned();
        let kept = |field: &str| before.as_ref()?.get("metadata")?.get(field).cloned();
        let uid = kept("uid").unwrap_or_else(|| ids::uuid().into());
        let created =
            kept("creationTimestamp").unwrap_or_else(|| format!("{:.0}", Timestamp::now()).into());
        let generation = kept("generation").and_then(|it| it.as_i64()).unwrap_or(0);
        let changed = before.as_ref().and_then(|it| it.get("spec")) != object.get("spec");
        if let Some(metadata) = metadata(&mut object) {
            metadata.insert("uid".into(), uid);
            metadata.insert("creationTimestamp".into(), created);
            if changed || generation > 0 {
                let generation = generation + i64::from(changed);
                metadata.insert("generation".into(), generation.into());
            }
        }
        self.version += 1;
        let object = Arc::new(at_version(object, self.version));
        self.change(resource, key, before, Some(object.clone()));
        Arc::unwrap_or_clone(object)
    }

    /// Removes an object. Returns false if it does not exist.
    pub(super) fn delete(&mut self, resource: &str, namespace: Option<&str>, name: &str) -> bool {
        let key = (namespace.unwrap_or_default().to_owned(), name.to_owned());
        let Some(before) = self
            .tables
            .get_mut(resource)
            .and_then(|it| it.objects.remove(&key))
        else {
            return false;
        };
        self.version += 1;
        self.change(resource, key, Some(before), None);
        true
    }

    fn change(
        &mut self,
        resource: &str,
        key: Key,
        before: Option<Arc<Value>>,
        after: Option<Arc<Value>>,
    ) {
        let Some(table) = self.tables.get_mut(resource) else {
            return;
        };
        if let Some(object) = &after {
            table.objects.insert(key, object.clone());
        }
        let due = Instant::now() + self.delay;
        table.changes.push_back(Change {
            version: self.version,
            due,
            before,
            after,
        });
        if table.changes.len() > self.history
            && let Some(forgotten) = table.changes.pop_front()
        {
            table.floor = forgotten.version;
        }
    }

    /// Returns one page of a list. All pages of a list have the version of the first, so that a
    /// watch from there reports the changes in the meantime.
    pub(super) fn page(
        &self,
        resource: &str,
        selector: &Selector,
        query: &Query,
    ) -> Result<Page, Failure> {
        let table = self.table(resource)?;
        let limit = query
            .get("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(0usize);
        let (version, after) = match query.get("continue").filter(|token| !token.is_empty()) {
            None => (self.version, None),
            Some(token) => {
                let (version, key) = parse_continue(token)
                    .ok_or_else(|| Failure::new(400, "continue key is not valid"))?;
                if version < table.floor {
                    let message = "The provided continue parameter is too old to display a \
                                   consistent list result.";
                    return Err(Failure::new(410, message));
                }
                (version, Some(key))
            }
        };
        let mut rest = table
            .objects
            .iter()
            .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
            .filter(|(_, object)| selector.matches(object))
            .peekable();
        let mut objects = Vec::new();
        let mut next = String::new();
        while let Some((key, object)) = rest.next() {
            objects.push(object.clone());
            if objects.len() == limit && rest.peek().is_some() {
                next = format!("{version}/{}/{}", key.0, key.1);
                break;
            }
        }
        Ok(Page {
            api_version: table.api_version.clone(),
            kind: table.kind.clone(),
            version,
            objects,
            next,
        })
    }
}

impl Table {
    pub(super) fn api_version(&self) -> &str {
        &self.api_version
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    pub(super) fn namespaced(&self) -> bool {
        self.namespaced
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<Value>> {
        let key = (namespace.unwrap_or_default().to_owned(), name.to_owned());
        self.objects.get(&key).cloned()
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.objects.values()
    }

    /// Returns the changes after a version, oldest first.
    pub(super) fn changes_after(&self, version: u64) -> impl Iterator<Item = &Change> {
        let first = self
            .changes
            .partition_point(|change| change.version <= version);
        self.changes.range(first..)
    }
}

impl Change {
    /// Returns the event type and object that a watch with this selector sees of the change.
    pub(super) fn seen_by(&self, selector: &Selector) -> Option<(&'static str, Cow<'_, Value>)> {
        let matching =
            |side: &'_ Option<Arc<Value>>| side.as_ref().is_some_and(|it| selector.matches(it));
        match (matching(&self.before), matching(&self.after)) {
            (false, false) => None,
            (false, true) => Some(("ADDED", Cow::Borrowed(self.after.as_deref()?))),
            (true, true) => Some(("MODIFIED", Cow::Borrowed(self.after.as_deref()?))),
            (true, false) => {
                let gone = self.before.as_deref()?.clone();
                Some(("DELETED", Cow::Owned(at_version(gone, self.version))))
            }
        }
    }
}

/// Returns the requested view of an object: complete, or metadata only.
pub(super) fn view(object: &Value, metadata_only: bool) -> Cow<'_, Value> {
    if !metadata_only {
        return Cow::Borrowed(object);
    }
    Cow::Owned(json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    }))
}

fn key(object: &Value) -> Key {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    (
        text("/metadata/namespace").to_owned(),
        text("/metadata/name").to_owned(),
    )
}

fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

fn at_version(mut object: Value, version: u64) -> Value {
    if let Some(metadata) = metadata(&mut object) {
        metadata.insert("resourceVersion".into(), version.to_string().into());
    }
    object
}

fn parse_continue(token: &str) -> Option<(u64, Key)> {
    let mut parts = token.splitn(3, '/');
    let version = parts.next()?.parse().ok()?;
    Some((
        version,
        (parts.next()?.to_owned(), parts.next()?.to_owned()),
    ))
}
