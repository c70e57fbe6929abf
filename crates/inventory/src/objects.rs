//! Objects of a cluster or of files, each with its file and line.

use std::path::PathBuf;

use rolegate_core::text::plain;
use serde_json::Value;

use crate::files::{self, Contents, FileError, Modules, Selection};
use crate::in_force::ConfigNeed;
use crate::object::{is_config, is_core, namespace_of};
use crate::offline::Module;
use crate::overlay::overlay;

/// Objects with their sources.
#[derive(Debug, Default)]
pub struct Objects {
    values: Vec<Value>,
    /// The file and line of each object that is from a file.
    places: Vec<Option<String>>,
    /// Rego modules in files.
    pub(crate) modules: Vec<Module>,
    /// A sentence for each skipped document.
    pub(crate) skipped: Vec<String>,
    /// The default namespace, if a cluster was read.
    namespace: Option<String>,
    /// The reason why a configuration is required.
    pub(crate) need: ConfigNeed,
}

impl Objects {
    /// Reads the rules and objects of files.
    ///
    /// # Errors
    /// Returns a [`FileError`] for unreadable files.
    pub fn of_files(paths: &[PathBuf]) -> Result<Self, FileError> {
        let selection = Selection {
            modules: Modules::Policies,
            ..Selection::default()
        };
        files::read(paths, selection).map(Self::of_contents)
    }

    /// Returns the rules and objects of `contents`.
    pub fn of_contents(contents: Contents) -> Self {
        let places = contents.manifests.iter().flat_map(|one| {
            let file = plain(&one.file);
            let documents = one.documents.iter();
            documents.map(move |document| Some(format!("{file}:{}", document.line())))
        });
        Self {
            places: places.collect(),
            values: files::objects(contents.manifests),
            modules: contents.modules,
            skipped: contents.skipped,
            ..Self::default()
        }
    }

    /// Returns the namespace to use if none is `given`: as in kubectl, that of the kubeconfig's
    /// context if a cluster was read.
    pub fn namespace(&self, given: Option<&str>) -> String {
        given
            .or(self.namespace.as_deref())
            .unwrap_or("default")
            .to_owned()
    }

    /// Creates objects that are not from a file.
    pub fn of_values(values: Vec<Value>) -> Self {
        Self {
            places: vec![None; values.len()],
            values,
            ..Self::default()
        }
    }

    /// Returns the rules of a cluster, and whether the kind of a RolegateConfig is installed.
    pub fn of_cluster(values: Vec<Value>, namespace: &str, has_kind: bool) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            need: if has_kind {
                ConfigNeed::KindInstalled
            } else {
                ConfigNeed::None
            },
            ..Self::of_values(values)
        }
    }

    /// Returns the objects with their files and lines.
    pub fn placed(&self) -> impl Iterator<Item = (&Value, &Option<String>)> + Clone {
        self.values.iter().zip(&self.places)
    }

    /// Returns the objects.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Returns whether there are Rego modules, or ConfigMaps in a namespace of policies.
    pub fn has_policies(&self, holds_policies: impl Fn(&str) -> bool) -> bool {
        let is_policy = |value: &Value| {
            let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
            is_core(value, "ConfigMap") && namespace.is_some_and(&holds_policies)
        };
        !self.modules.is_empty() || self.values.iter().any(is_policy)
    }

    /// Adds objects that are not from a file.
    pub fn extend(&mut self, values: Vec<Value>) {
        self.places.extend(vec![None; values.len()]);
        self.values.extend(values);
    }

    /// Adds an object that is not from a file.
    pub fn push(&mut self, value: Value) {
        self.push_of(value, None);
    }

    /// Adds an object with its file and line.
    pub fn push_of(&mut self, value: Value, place: Option<String>) {
        self.values.push(value);
        self.places.push(place);
    }

    /// Removes and returns the first object that matches.
    pub fn take(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let place = self.values.iter().position(wanted)?;
        self.places.remove(place);
        Some(self.values.remove(place))
    }

    /// Removes pods and service accounts of other namespaces.
    pub fn keep_users(&mut self, namespace: &str) {
        let is_kept = |value: &Value| {
            let is_user = is_core(value, "Pod") || is_core(value, "ServiceAccount");
            !is_user || namespace_of(value, "default") == namespace
        };
        let (values, places) = (
            std::mem::take(&mut self.values),
            std::mem::take(&mut self.places),
        );
        let all = values.into_iter().zip(places);
        (self.values, self.places) = all.filter(|(value, _)| is_kept(value)).unzip();
    }

    /// Returns these objects overlaid with those of a change, see [`overlay`].
    pub fn overlaid(&self, change: &Self, replace: bool) -> Self {
        let (values, places) = overlay(self.placed(), change.placed(), replace);
        // A module of the change replaces that of the same file.
        let kept = self.modules.iter().filter(|module| {
            let mut others = change.modules.iter();
            !replace && others.all(|other| other.file != module.file)
        });
        Self {
            modules: kept.chain(&change.modules).cloned().collect(),
            skipped: [&*self.skipped, &*change.skipped].concat(),
            places,
            values,
            namespace: self.namespace.clone(),
            need: if self.values.iter().any(is_config) {
                ConfigNeed::Removed
            } else {
                self.need
            },
        }
    }
}
