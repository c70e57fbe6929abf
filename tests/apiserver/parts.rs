//! The manifests of `deploy/`: each contains only its own objects, so that deleting one leaves the
//! others intact.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use rolegate_testkit::request::Requests;
use rolegate_testkit::{Cluster, eventually, repository};
use serde_json::{Value, json};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);
/// The manifests that one cluster can combine. Agents with a broker are an alternative to the
/// others.
const ALONE: [&str; 4] = [
    "crds",
    "rolegate-agent",
    "rolegate-admission",
    "rolegate-policies",
];
const BROKERED: [&str; 4] = [
    "crds",
    "rolegate-broker",
    "rolegate-agent-broker",
    "rolegate-admission",
];

fn objects(part: &str) -> Vec<Value> {
    let path = repository().join(format!("deploy/{part}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

/// Returns the path of an object, with the plural of its kind as in this directory.
fn path(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").unwrap();
    let kind = text("/kind").unwrap().to_lowercase();
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = match kind.strip_suffix('y') {
        Some(start) => format!("{start}ies"),
        None => format!("{kind}s"),
    };
    let namespace = text("/metadata/namespace");
    let namespace = namespace
        .map(|name| format!("namespaces/{name}/"))
        .unwrap_or_default();
    let name = text("/metadata/name").unwrap();
    format!("/{root}/{version}/{namespace}{plural}/{name}")
}

async fn is_there(admin: &Requests, object: &Value) -> anyhow::Result<bool> {
    let answer = admin.get(&path(object)).await?;
    let deleted = answer.body.pointer("/metadata/deletionTimestamp").is_some();
    match answer.status.as_u16() {
        200 => Ok(!deleted),
        404 => Ok(false),
        other => anyhow::bail!("{}: {other} {}", path(object), answer.message()),
    }
}

#[test]
fn no_object_is_in_two_parts_and_no_part_holds_a_namespace() {
    for parts in [ALONE, BROKERED] {
        let mut owners = BTreeMap::new();
        for part in parts {
            for object in objects(part) {
                assert_ne!(object["kind"], "Namespace", "{part}");
                // Without its webhook, this configuration would make the API server reject
                // everything.
                assert_ne!(object["kind"], "ValidatingWebhookConfiguration", "{part}");
                let before = owners.insert(path(&object), part);
                assert_eq!(before, None, "{} is in {part} too", path(&object));
            }
        }
    }
    let namespaces = objects("namespace");
    assert_eq!(namespaces.len(), 1);
    assert_eq!(namespaces[0]["metadata"]["name"], "rolegate-system");
}

/// Deletes every object of the file, as `kubectl delete -f` does.
async fn delete(admin: &Requests, part: &str) -> anyhow::Result<()> {
    for object in objects(part) {
        let answer = admin.delete(&path(&object)).await?;
        ensure!(answer.status.is_success(), "{}", answer.message());
        eventually(DEADLINE, async || {
            // An object that is still terminating could not be created again.
            let answer = admin.get(&path(&object)).await?;
            ensure!(answer.status == 404, "{} is there", path(&object));
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn deleting_one_part_leaves_the_others() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let admin = cluster.requests()?;
    // OPA itself, with its policies.
    cluster
        .apply_manifest("{apiVersion: v1, kind: Namespace, metadata: {name: opa}}")
        .await?;
    let policy = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "policy", "namespace": "opa" } });
    cluster.apply_manifest(&policy.to_string()).await?;
    for parts in [ALONE, BROKERED] {
        cluster.install(&parts).await?;
        for part in parts {
            delete(&admin, part)
                .await
                .with_context(|| part.to_owned())?;
            let others = parts.into_iter().filter(|other| *other != part);
            for other in others.chain(["namespace"]) {
                for object in objects(other) {
                    let there = is_there(&admin, &object).await?;
                    ensure!(there, "{part} took {} of {other}", path(&object));
                }
            }
            ensure!(is_there(&admin, &policy).await?, "{part} took OPA's policy");
            cluster.install(&[part]).await?;
        }
        for part in parts {
            delete(&admin, part).await?;
        }
    }
    Ok(())
}
