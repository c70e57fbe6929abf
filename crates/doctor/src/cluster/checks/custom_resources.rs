//! rolegate's kinds are installed, and are those of this program's version.

use std::collections::BTreeSet;

use rolegate_api::{GROUP, VERSION, crds_yaml};
use serde_json::Value;

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::objects::Definition;
use crate::reading::Unread;

const APPLY: &str = "kubectl apply -f deploy/crds.yaml";
/// Maximum number of fields in a message.
const MAX_FIELDS: usize = 5;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let installed = facts.definitions.as_ref()?;
    if installed.is_empty() {
        let message = "rolegate's kinds are not installed: RoleGrants and the RolegateConfig do not exist, and the flags of agents apply";
        return Ok(Finding::warning(message).advice(APPLY).into());
    }
    let ours = ours()?;
    let mut findings = Vec::new();
    for definition in &ours {
        let name = &definition.metadata.name;
        match installed.iter().find(|one| one.metadata.name == *name) {
            None => {
                let message = format!("CustomResourceDefinition {name} is not installed");
                findings.push(Finding::problem(message).advice(APPLY));
            }
            Some(found) => findings.extend(compared(found, definition)),
        }
    }
    Ok(Outcome::of(
        format!("{} kinds of {GROUP}/{VERSION}", installed.len()),
        findings,
    ))
}

/// Returns the definitions of this program that processes read.
fn ours() -> Result<Vec<Definition>, Unread> {
    let failed = |why: String| Unread::Failed {
        what: "the definitions of this program".into(),
        why,
    };
    let text = crds_yaml().map_err(failed)?;
    let all: Vec<Definition> =
        serde_saphyr::from_multiple(&text).map_err(|error| failed(error.to_string()))?;
    // Only ValidatingAdmissionPolicies read the grant table.
    let read = all
        .into_iter()
        .filter(|one| !one.metadata.name.starts_with("rolegranttables."));
    Ok(read.collect())
}

fn compared(found: &Definition, ours: &Definition) -> Option<Finding> {
    let name = &found.metadata.name;
    let version = |definition: &Definition| {
        let mut versions = definition.spec.versions.iter();
        versions
            .find(|one| one.name == VERSION && one.served)
            .cloned()
    };
    let Some(served) = version(found) else {
        let message = format!("CustomResourceDefinition {name} does not serve version {VERSION}");
        return Some(Finding::problem(message).advice(APPLY));
    };
    let mut conditions = found.status.conditions.iter();
    if let Some(one) = conditions.find(|one| one.kind == "Established" && one.status == "False") {
        let message = format!(
            "CustomResourceDefinition {name} is not established: {}",
            one.message
        );
        return Some(Finding::problem(message));
    }
    let expected = fields(&version(ours)?.schema);
    let actual = fields(&served.schema);
    let list = |fields: BTreeSet<&String>| -> String {
        let shown: Vec<_> = fields
            .iter()
            .take(MAX_FIELDS)
            .map(|one| one.as_str())
            .collect();
        let more = fields.len().saturating_sub(MAX_FIELDS);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{more}", shown.join(", "))
    };
    let missing: BTreeSet<_> = expected.difference(&actual).collect();
    if !missing.is_empty() {
        let message = format!(
            "CustomResourceDefinition {name} is older than this program: it lacks {}",
            list(missing)
        );
        return Some(Finding::warning(message).advice(APPLY));
    }
    let unknown: BTreeSet<_> = actual.difference(&expected).collect();
    (!unknown.is_empty()).then(|| {
        let message = format!(
            "CustomResourceDefinition {name} is newer than this program: it has {}",
            list(unknown)
        );
        Finding::warning(message).advice("use a `rolegate` of the cluster's version")
    })
}

/// Returns the paths of all fields of a schema.
fn fields(schema: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    if let Some(schema) = schema.get("openAPIV3Schema") {
        collect(schema, "", &mut all);
    }
    // The API server has these fields in every schema.
    all.retain(|path| !matches!(&**path, "apiVersion" | "kind" | "metadata"));
    all
}

fn collect(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, inner) in properties.into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        collect(inner, &path, all);
        all.insert(path);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) {
            collect(inner, path, all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;

    #[test]
    fn the_kinds_of_this_version_pass() {
        let mut facts = healthy();
        facts.definitions = ours();
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Ok, "{outcome:?}");
        assert!(outcome.summary.contains("2 kinds"), "{outcome:?}");
    }

    #[test]
    fn missing_and_old_kinds_are_found() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        let mut all = ours().unwrap();
        let last = all.pop().unwrap();
        facts.definitions = Ok(all.clone());
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert!(outcome.findings[0].message.contains(&last.metadata.name));
        let version = &mut all[0].spec.versions[0];
        let spec = version
            .schema
            .pointer_mut("/openAPIV3Schema/properties/spec/properties");
        spec.unwrap().as_object_mut().unwrap().remove("roles");
        all.push(last.clone());
        facts.definitions = Ok(all.clone());
        let outcome = check(&facts).unwrap();
        assert!(
            outcome.findings[0].message.contains("lacks spec.roles"),
            "{outcome:?}"
        );
        all[0].spec.versions[0].served = false;
        facts.definitions = Ok(all);
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
    }

    #[test]
    fn newer_kinds_are_found() {
        let mut facts = healthy();
        let mut all = ours().unwrap();
        let version = &mut all[0].spec.versions[0];
        let spec = version
            .schema
            .pointer_mut("/openAPIV3Schema/properties/spec/properties");
        spec.unwrap()["future"] = serde_json::json!({"type": "string"});
        facts.definitions = Ok(all);
        let outcome = check(&facts).unwrap();
        assert!(
            outcome.findings[0].message.contains("it has spec.future"),
            "{outcome:?}"
        );
    }
}
