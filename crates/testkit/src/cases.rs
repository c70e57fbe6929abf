//! The table of cases: requests and their expected results, shared by everything that must agree
//! about them: admission offline and behind a real API server, agents, and CEL.
//!
//! A file in `tests/cases` names a world (`worlds/NAME.yaml`: manifests of the configuration,
//! grants, namespaces and policies) and lists cases. Objects are complete (`object`, `oldObject`),
//! or merge patches (`with`, `before`) of the file's `base`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::repository;

/// A request and its expected results.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's name without its extension.
    pub file: String,
    /// The tested fact, as a sentence.
    pub name: String,
    /// The rules.
    pub world: Arc<World>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// The requesting user.
    pub user: User,
    /// The subresource, such as `status`. Empty for the object itself.
    pub subresource: String,
    /// The new object.
    pub object: Option<Value>,
    /// The existing object.
    pub old_object: Option<Value>,
    /// The expected results.
    pub expect: Expect,
}

/// Rules, as manifests.
#[derive(Debug, Clone)]
pub struct World {
    /// The file's name without its extension.
    pub name: String,
    /// All documents.
    pub documents: Vec<Value>,
}

/// A requesting user.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's name.
    #[serde(default = "developer")]
    pub name: String,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

fn developer() -> String {
    "jane".into()
}

impl Default for User {
    /// Returns a developer who may not write rules.
    fn default() -> Self {
        Self {
            name: developer(),
            groups: vec!["developers".into(), "system:authenticated".into()],
        }
    }
}

/// The expected results of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The outcome of admission.
    pub admission: Verdict,
    /// Texts contained in the denial.
    #[serde(default)]
    pub says: Vec<String>,
    /// Texts contained in the warnings. If empty, there must be no warning.
    #[serde(default)]
    pub warns: Vec<String>,
    /// The result for a running pod of this shape at an agent. Only for pods.
    #[serde(default)]
    pub agent: Option<AgentResult>,
    /// The result of the same rules exported as CEL.
    #[serde(default)]
    pub cel: Cel,
}

/// An outcome of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The request is allowed.
    Allow,
    /// The request is denied.
    Deny,
}

/// The result for a pod at an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentResult {
    /// Credentials.
    Allow,
    /// A denial.
    Deny,
    /// The pod has no role.
    None,
}

/// The result of CEL, relative to admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cel {
    /// The same.
    #[default]
    Same,
    /// CEL cannot express it.
    Silent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    world: String,
    #[serde(default)]
    base: Option<Value>,
    cases: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    name: String,
    #[serde(default = "create")]
    operation: String,
    #[serde(default)]
    user: User,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    object: Option<Value>,
    #[serde(default)]
    old_object: Option<Value>,
    #[serde(default)]
    with: Option<Value>,
    #[serde(default)]
    before: Option<Value>,
    expect: Expect,
}

fn create() -> String {
    "CREATE".into()
}

/// Reads all cases of `tests/cases`, in the order of files.
///
/// # Errors
/// Returns an error with the file and the case that is invalid or contradictory.
pub fn load_all() -> anyhow::Result<Vec<Case>> {
    let folder = repository().join("tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    let mut worlds = BTreeMap::new();
    let mut cases = Vec::new();
    for path in files {
        let more = load(&folder, &path, &mut worlds)
            .with_context(|| format!("cannot read the cases of {}", path.display()))?;
        cases.extend(more);
    }
    ensure!(!cases.is_empty(), "{} has no cases", folder.display());
    Ok(cases)
}

/// Reads the manifests of `tests/cases/worlds/NAME.yaml`.
///
/// # Errors
/// Returns an error if the file is missing or is not YAML.
pub fn world(name: &str) -> anyhow::Result<World> {
    let path = repository().join(format!("tests/cases/worlds/{name}.yaml"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the world {}", path.display()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .with_context(|| format!("{} is not YAML", path.display()))?;
    ensure!(
        documents.iter().all(Value::is_object),
        "{} has a document that is not an object",
        path.display()
    );
    Ok(World {
        name: name.to_owned(),
        documents,
    })
}

fn load(
    folder: &Path,
    path: &Path,
    worlds: &mut BTreeMap<String, Arc<World>>,
) -> anyhow::Result<Vec<Case>> {
    let text = std::fs::read_to_string(path)?;
    let file: File = serde_saphyr::from_str(&text)?;
    let name = file.world.strip_prefix("worlds/");
    let name = name.and_then(|name| name.strip_suffix(".yaml"));
    let Some(name) = name else {
        bail!("world is {:?}: write worlds/NAME.yaml", file.world);
    };
    if !worlds.contains_key(name) {
        let read = world(name).with_context(|| format!("in {}", folder.display()))?;
        worlds.insert(name.to_owned(), Arc::new(read));
    }
    let world = worlds.get(name).context("a world that was just read")?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut names = BTreeSet::new();
    let mut cases = Vec::new();
    for written in file.cases {
        ensure!(
            names.insert(written.name.clone()),
            "the case {:?} is there twice",
            written.name
        );
        let called = format!("in the case {:?}", written.name);
        let case = written.case(&stem, world, file.base.as_ref());
        cases.push(case.context(called)?);
    }
    Ok(cases)
}

impl Written {
    fn case(self, file: &str, world: &Arc<World>, base: Option<&Value>) -> anyhow::Result<Case> {
        let patched = |patch: Option<Value>| -> anyhow::Result<Option<Value>> {
            let Some(patch) = patch else { return Ok(None) };
            let mut object = base.context("a patch needs the file's base")?.clone();
            merge(&mut object, patch);
            Ok(Some(object))
        };
        ensure!(
            self.object.is_none() || self.with.is_none(),
            "it has both object and with"
        );
        ensure!(
            self.old_object.is_none() || self.before.is_none(),
            "it has both oldObject and before"
        );
        let object = self.object.or(patched(self.with)?);
        let old_object = self.old_object.or(patched(self.before)?);
        let (new, old) = match self.operation.as_str() {
            "CREATE" => (true, false),
            "UPDATE" => (true, true),
            "DELETE" => (false, true),
            "CONNECT" => (object.is_some(), old_object.is_some()),
            other => bail!("the operation {other:?} is not CREATE, UPDATE, DELETE or CONNECT"),
        };
        ensure!(object.is_some() == new, "object and operation don't fit");
        ensure!(
            old_object.is_some() == old,
            "oldObject and operation don't fit"
        );
        ensure!(
            self.expect.says.is_empty() || self.expect.admission == Verdict::Deny,
            "what is allowed says nothing"
        );
        Ok(Case {
            file: file.to_owned(),
            name: self.name,
            world: world.clone(),
            operation: self.operation,
            user: self.user,
            subresource: self.subresource,
            object,
            old_object,
            expect: self.expect,
        })
    }
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(fields) = target {
        for (key, value) in patch {
            if value.is_null() {
                fields.remove(&key);
            } else {
                merge(fields.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}

impl Case {
    /// Returns the object of the request: the new one, or for a deletion the existing one.
    pub fn subject(&self) -> &Value {
        let object = self.object.as_ref().or(self.old_object.as_ref());
        object.unwrap_or(&Value::Null)
    }

    /// Returns the kind of the object.
    pub fn kind(&self) -> &str {
        text(self.subject(), &["kind"])
    }

    /// Returns the plural of the kind, as in URLs.
    pub fn resource(&self) -> String {
        match (self.subresource.as_str(), self.kind()) {
            ("token", _) => "serviceaccounts".into(),
            ("binding", _) => "pods".into(),
            (_, kind) => format!("{}s", kind.to_lowercase()),
        }
    }

    /// Returns the namespace. Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        text(self.subject(), &["metadata", "namespace"])
    }

    /// Returns the AdmissionReview that the API server would send.
    pub fn review(&self) -> Value {
        let (group, version) = split_version(text(self.subject(), &["apiVersion"]));
        // The resource of a token or a binding differs from its kind.
        let (resource_group, resource_version) = match self.subresource.as_str() {
            "token" | "binding" => ("", "v1"),
            _ => (group, version),
        };
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "8f0e6f1c-0000-4000-8000-000000000001",
                "kind": {"group": group, "version": version, "kind": self.kind()},
                "resource": {"group": resource_group, "version": resource_version,
                    "resource": self.resource()},
                "subResource": self.subresource,
                "name": text(self.subject(), &["metadata", "name"]),
                "namespace": self.namespace(),
                "operation": self.operation,
                "userInfo": {"username": self.user.name, "groups": self.user.groups},
                "object": self.object,
                "oldObject": self.old_object,
                "dryRun": false,
                "options": null,
            },
        })
    }
}

fn split_version(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("", text))
}

fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    let mut here = object;
    for name in path {
        here = here.get(name).unwrap_or(&Value::Null);
    }
    here.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_merged() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(
            &mut target,
            json!({"a": {"b": null, "e": {"f": 3}}, "d": [2]}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "e": {"f": 3}}, "d": [2]}));
    }

    #[test]
    fn contradictory_cases_are_errors() {
        let read = |case: &str| -> anyhow::Result<Case> {
            let written: Written = serde_saphyr::from_str(case)?;
            let world = Arc::new(World {
                name: "none".into(),
                documents: Vec::new(),
            });
            written.case("file", &world, None)
        };
        let says = |case: &str| format!("{:#}", read(case).unwrap_err());
        assert!(says("{name: x, expect: {admission: allow}}").contains("don't fit"));
        assert!(says("{name: x, with: {}, expect: {admission: allow}}").contains("base"));
        assert!(says("{name: x, operation: GET, expect: {admission: allow}}").contains("GET"));
        let chatty = "{name: x, object: {}, expect: {admission: allow, says: [no]}}";
        assert!(says(chatty).contains("says nothing"));
        assert!(says("{name: x, object: {}, expect: {webhooks: allow}}").contains("webhooks"));
        assert!(read("{name: x, object: {}, expect: {admission: deny}}").is_ok());
    }
}
