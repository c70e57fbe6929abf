//! A revocation applies to the next response, whatever is cached.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use rolegate_testkit::lab::Namespace;
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, eventually, repository};
use serde_json::{Value, json};

use crate::ask::{self, CREDENTIALS, Reply};
use crate::fixture::{AgentFixture, DEADLINE, served};

const ALLOWED: &str = "iam.amazonaws.com/allowed-roles";

/// Waits until the pod's response for a role has this status.
async fn answers(pod: &Namespace, role: &str, status: u16) -> anyhow::Result<Reply> {
    eventually(DEADLINE, async || {
        let reply = ask::get(pod, &format!("{CREDENTIALS}{role}"))?;
        ensure!(reply.status == status, "{reply:?}");
        Ok(reply)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_04_a_role_change_takes_effect_at_once() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("changes", cluster).await?;
    let namespace = fixture.namespace("a");
    cluster
        .create_namespace(&namespace, &[(ALLOWED, r#"["reader", "writer"]"#)])
        .await?;
    let pod = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "app", &pod).role("reader"))
        .await?;
    let _agent = fixture.ready_agent(&["--namespace-restrictions"]).await?;
    let arn = |role: &str| format!("arn:aws:iam::123456789012:role/{role}");
    assert_eq!(served(&fixture, &pod, "reader").await?, arn("reader"));

    // The namespace no longer allows the role: it is denied, although its credentials are valid for
    // an hour.
    cluster
        .annotate_namespace(&namespace, &[(ALLOWED, Some(r#"["writer"]"#))])
        .await?;
    let denied = answers(&pod, "reader", 403).await?;
    assert!(denied.body.contains("does not allow"), "{denied:?}");
    for path in [CREDENTIALS, "/latest/meta-data/iam/info"] {
        assert_eq!(ask::get(&pod, path)?.status, 403);
    }
    // The pod requests an allowed role instead: it gets that role, and the previous one is never
    // served again.
    let role = [("iam.amazonaws.com/role", Some("writer"))];
    cluster.annotate_pod(&namespace, "app", &role).await?;
    assert_eq!(served(&fixture, &pod, "writer").await?, arn("writer"));
    assert_eq!(ask::get(&pod, &format!("{CREDENTIALS}reader"))?.status, 403);
    // The role is allowed again.
    cluster
        .annotate_namespace(&namespace, &[(ALLOWED, Some(r#"["*"]"#))])
        .await?;
    cluster
        .annotate_pod(&namespace, "app", &[("iam.amazonaws.com/role", None)])
        .await?;
    answers(&pod, "writer", 404).await?;
    // A finished pod owns no address, and so gets no role.
    cluster.annotate_pod(&namespace, "app", &role).await?;
    served(&fixture, &pod, "writer").await?;
    let addresses: [IpAddr; 2] = [pod.v4.into(), pod.v6.into()];
    cluster
        .set_pod_status(&namespace, "app", "Succeeded", &addresses)
        .await?;
    answers(&pod, "writer", 404).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_used_again_gives_the_new_pods_role_and_never_the_old_ones() -> anyhow::Result<()>
{
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("reuse", cluster).await?;
    let namespace = fixture.namespace("a");
    cluster.create_namespace(&namespace, &[]).await?;
    let old = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "old", &old).role("old"))
        .await?;
    let _agent = fixture.ready_agent(&[]).await?;
    served(&fixture, &old, "old").await?;

    // The network plugin assigns the address to the next pod before the cluster reports either
    // change.
    drop(old);
    let new = fixture.pod("10.1.0.5")?;
    for path in [CREDENTIALS.to_owned(), format!("{CREDENTIALS}old")] {
        let reply = ask::get(&new, &path)?;
        assert_eq!(reply.status, 404, "{reply:?}");
    }
    // No pod is served while both are known, or only the old one is.
    cluster
        .run_pod(&fixture.object("a", "new", &new).role("new"))
        .await?;
    for _ in 0..3 {
        let reply = ask::get(&new, &format!("{CREDENTIALS}old"))?;
        assert_ne!(reply.status, 200, "{reply:?}");
    }
    cluster.delete_pod(&namespace, "old").await?;
    let role = eventually(DEADLINE, async || {
        let reply = ask::get(&new, &format!("{CREDENTIALS}old"))?;
        assert_ne!(reply.status, 200, "{reply:?}");
        let reply = ask::get(&new, &format!("{CREDENTIALS}new"))?;
        ensure!(reply.status == 200, "{reply:?}");
        let document = reply.json()?;
        fixture
            .sts
            .role_of(document["AccessKeyId"].as_str().context("no key")?)
    });
    assert_eq!(role.await?, "arn:aws:iam::123456789012:role/new");

    // The pod is deleted and its namespace still exists: no credentials.
    cluster.delete_pod(&namespace, "new").await?;
    answers(&new, "new", 404).await?;
    Ok(())
}

const RULES: &str = "/apis/rolegate.dev/v1alpha1";
/// The rights to read policies that the shipped manifest describes.
const POLICIES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: agent, namespace: opa }
rules: [{ apiGroups: [""], resources: [configmaps], verbs: [get, list, watch] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: agent, namespace: opa }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent }
subjects: [{ kind: ServiceAccount, name: rolegate-agent, namespace: rolegate-system }]
"#;
const DOOR: &str = r#"
package kubernetes.admission

deny[msg] {
    input.request.object.metadata.annotations["iam.amazonaws.com/role"] == "reader"
    msg := "readers are not wanted"
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn rule_04_a_change_of_the_clusters_rules_counts_for_running_pods_at_once()
-> anyhow::Result<()> {
    // A RolegateConfig would apply to the other tests too.
    let cluster = &Cluster::start().await?;
    let crds = repository().join("deploy/crds.yaml");
    cluster.apply_file(&crds).await?;
    let admin = cluster.requests()?;
    let config = json!({
        "apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
        "metadata": { "name": "cluster" },
        "spec": { "layers": { "namespace": "off", "grants": "enforce", "rego": "off" } },
    });
    eventually(DEADLINE, async || {
        let path = format!("{RULES}/rolegateconfigs");
        admin.post(&path, &config).await?.object().map(drop)
    })
    .await?;
    let fixture = AgentFixture::new("rules", cluster).await?;
    let namespace = fixture.namespace("a");
    for name in [&namespace, "opa"] {
        cluster.create_namespace(name, &[]).await?;
    }
    cluster.apply_manifest(POLICIES).await?;
    let grant = json!({
        "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": { "name": "reader" },
        "spec": { "roles": ["reader"], "subjects": [{ "namespaces": [namespace] }] },
    });
    let give = async || cluster.apply_manifest(&grant.to_string()).await;
    give().await?;
    let pod = fixture.pod("10.1.0.5")?;
    cluster
        .run_pod(&fixture.object("a", "app", &pod).role("reader"))
        .await?;
    let mut agent = fixture.ready_agent(&[]).await?;
    let arn = "arn:aws:iam::123456789012:role/reader";
    assert_eq!(served(&fixture, &pod, "reader").await?, arn);

    // The grant is deleted, although its credentials are valid for an hour, and created again.
    let path = format!("{RULES}/rolegrants/reader");
    admin.delete(&path).await?.object()?;
    let denied = answers(&pod, "reader", 403).await?;
    assert!(
        denied.body.contains("no RoleGrant covers the role"),
        "{denied:?}"
    );
    give().await?;
    served(&fixture, &pod, "reader").await?;

    // A layer in audit mode: the request is served and reported by a metric and the log.
    admin.delete(&path).await?.object()?;
    answers(&pod, "reader", 403).await?;
    let layers = async |layers: Value| {
        let path = format!("{RULES}/rolegateconfigs/cluster");
        let change = json!({ "spec": { "layers": layers } });
        admin
            .patch(&path, PatchKind::Merge, &change)
            .await?
            .object()
    };
    layers(json!({ "grants": "audit" })).await?;
    served(&fixture, &pod, "reader").await?;
    // An Event is not repeated for a while, so this one is about another pod.
    let other = fixture.pod("10.1.0.6")?;
    cluster
        .run_pod(&fixture.object("a", "other", &other).role("reader"))
        .await?;
    served(&fixture, &other, "reader").await?;
    let metrics = fixture.admin("/metrics")?.body;
    let counted = |line: &str| {
        let count = line.strip_prefix("rolegate_decisions_total{enforcement_point=\"agent\",layer=\"grants\",mode=\"audit\",result=\"denied\"} ");
        count.is_some_and(|count| count != "0")
    };
    assert!(metrics.lines().any(counted), "{metrics}");
    agent
        .wait_for_line("request would be denied", DEADLINE)
        .await?;

    // A policy for agents is created and deleted.
    layers(json!({ "grants": "off", "rego": "enforce" })).await?;
    served(&fixture, &pod, "reader").await?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "door", "labels": { "openpolicyagent.org/policy": "rego" },
            "annotations": { "rolegate.dev/enforcement-points": "admission,agent" },
        },
        "data": { "main": DOOR },
    });
    let maps = "/api/v1/namespaces/opa/configmaps";
    admin.post(maps, &map).await?.object()?;
    let denied = answers(&pod, "reader", 403).await?;
    assert!(denied.body.contains("readers are not wanted"), "{denied:?}");
    admin.delete(&format!("{maps}/door")).await?.object()?;
    assert_eq!(served(&fixture, &pod, "reader").await?, arn);
    Ok(())
}
