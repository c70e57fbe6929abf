//! The table of cases: one list of requests and what is to come of them, for everything that must
//! agree about them: the gate offline and behind a real API server, the doors, and CEL.
//!
//! A file in `tests/cases` names a world (`worlds/NAME.yaml`: manifests of the configuration,
//! grants, namespaces and policies) and lists cases. Objects are written out (`object`,
//! `oldObject`), or as merge patches (`with`, `before`) of the file's `base`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::repository;

/// A request, and what is to come of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's name without its ending.
    pub file: String,
    /// What it shows, as a sentence.
    pub name: String,
    /// The rules.
    pub world: Arc<World>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// Who asks.
    pub user: User,
    /// Such as `status`; empty for the object itself.
    pub subresource: String,
    /// The object as it would be.
    pub object: Option<Value>,
    /// The object as it is.
    pub old_object: Option<Value>,
    /// What is to come of it.
    pub expect: Expect,
}

/// Rules, as manifests.
#[derive(Debug, Clone)]
pub struct World {
    /// The file's name without its ending.
    pub name: String,
    /// Each document.
    pub documents: Vec<Value>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name.
    #[serde(default = "somebody")]
    pub name: String,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

fn somebody() -> String {
    "jane".into()
}

impl Default for User {
    /// A developer without any part in the rules.
    fn default() -> Self {
        Self {
            name: somebody(),
            groups: vec!["developers".into(), "system:authenticated".into()],
        }
    }
}

/// What is to come of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// What the gate says.
    pub gate: Verdict,
    /// Texts that the denial holds.
    #[serde(default)]
    pub says: Vec<String>,
    /// Texts that the warnings hold; without any there is no warning.
    #[serde(default)]
    pub warns: Vec<String>,
    /// What a running pod of this shape gets at a door; only for pods.
    #[serde(default)]
    pub door: Option<Door>,
    /// Whether the same rules exported as CEL say the same.
    #[serde(default)]
    pub cel: Cel,
}

/// What the gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It lets the request through.
    Allow,
    /// It refuses.
    Deny,
}

/// What a pod gets at a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Credentials.
    Allow,
    /// A refusal.
    Deny,
    /// The answer that it has no role.
    None,
}

/// Whether CEL says the same as the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cel {
    /// It does.
    #[default]
    Same,
    /// CEL can't say it.
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

/// All cases of `tests/cases`, in the order of files.
///
/// # Errors
/// A sentence with the file and the case that cannot be read or contradicts itself.
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

/// The manifests of `tests/cases/worlds/NAME.yaml`.
///
/// # Errors
/// When the file is missing or is not YAML.
pub fn world(name: &str) -> anyhow::Result<World> {
    let path = repository().join(format!("tests/cases/worlds/{name}.yaml"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the world {}", path.display()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .with_context(|| format!("{} is not YAML", path.display()))?;
    ensure!(
        documents.iter().all(Value::is_object),
        "{} has a document that is no object",
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
            other => bail!("the operation {other:?} is none of CREATE, UPDATE, DELETE and CONNECT"),
        };
        ensure!(object.is_some() == new, "object and operation don't fit");
        ensure!(
            old_object.is_some() == old,
            "oldObject and operation don't fit"
        );
        ensure!(
            self.expect.says.is_empty() || self.expect.gate == Verdict::Deny,
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
    /// The object that it is about: as it would be, or at a deletion as it is.
    pub fn subject(&self) -> &Value {
        let object = self.object.as_ref().or(self.old_object.as_ref());
        object.unwrap_or(&Value::Null)
    }

    /// The kind of the object.
    pub fn kind(&self) -> &str {
        text(self.subject(), &["kind"])
    }

    /// The plural of the kind, as in URLs.
    pub fn resource(&self) -> String {
        match (self.subresource.as_str(), self.kind()) {
            ("token", _) => "serviceaccounts".into(),
            ("binding", _) => "pods".into(),
            (_, kind) => format!("{}s", kind.to_lowercase()),
        }
    }

    /// The namespace; empty for objects of the cluster.
    pub fn namespace(&self) -> &str {
        text(self.subject(), &["metadata", "namespace"])
    }

    /// The AdmissionReview that the API server would send.
    pub fn review(&self) -> Value {
        let (group, version) = split_version(text(self.subject(), &["apiVersion"]));
        // A token or a binding is posted to something else.
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
    fn cases_that_contradict_themselves_are_told() {
        let read = |case: &str| -> anyhow::Result<Case> {
            let written: Written = serde_saphyr::from_str(case)?;
            let world = Arc::new(World {
                name: "none".into(),
                documents: Vec::new(),
            });
            written.case("file", &world, None)
        };
        let says = |case: &str| format!("{:#}", read(case).unwrap_err());
        assert!(says("{name: x, expect: {gate: allow}}").contains("don't fit"));
        assert!(says("{name: x, with: {}, expect: {gate: allow}}").contains("base"));
        assert!(says("{name: x, operation: GET, expect: {gate: allow}}").contains("GET"));
        let chatty = "{name: x, object: {}, expect: {gate: allow, says: [no]}}";
        assert!(says(chatty).contains("says nothing"));
        assert!(says("{name: x, object: {}, expect: {gates: allow}}").contains("gates"));
        assert!(read("{name: x, object: {}, expect: {gate: deny}}").is_ok());
    }
}
