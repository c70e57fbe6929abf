//! The cluster without the webhook, and while its certificate is renewed.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rolegate_testkit::admission::HOME;
use rolegate_testkit::request::{Answer, PatchKind};
use rolegate_testkit::{Cluster, TestPod};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::harness::{
    DEADLINE, GRANTS, ROLE, WebhookHarness, alone, deployment, pod, refused, taken,
};

/// Fails unless the API server rejected the request because the webhook did not respond.
fn unanswered(what: &str, answer: &Answer) -> anyhow::Result<()> {
    let message = answer.message();
    ensure!(
        answer.status == 500 && message.contains("failed calling webhook"),
        "{what} should be refused while the webhook is down: {} {}",
        answer.status,
        answer.body
    );
    ensure!(message.contains(".rolegate.dev"), "{what}: {message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_down_refuses_what_names_a_role_and_nothing_else() -> anyhow::Result<()> {
    let _alone = alone().await?;
    let mut harness = WebhookHarness::start(Cluster::start().await?, GRANTS).await?;
    let namespace = "shop";
    harness.shop(namespace).await?;
    for name in ["kube-system", HOME] {
        harness
            .cluster
            .create_service_account(name, "default")
            .await?;
    }
    let app = TestPod::new(namespace, "app", "node").address([10, 1, 0, 5]);
    harness.cluster.run_pod(&app.role("shop-reader")).await?;
    let jane = harness.jane()?;
    let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let web = deployment("web", 1, Some("shop-reader"));
    taken("a Deployment", jane.post(&deployments, &web).await?)?;

    harness.test_admission.kill_admission();
    let of = |namespace: &str, plural: &str| format!("/api/v1/namespaces/{namespace}/{plural}");
    let (reader, role_arn) = (
        Some("shop-reader"),
        "arn:aws:iam::123456789012:role/shop-reader",
    );
    let variable = json!({ "spec": { "containers": [{ "name": "main", "image": "none",
        "env": [{ "name": "AWS_ROLE_ARN", "value": role_arn }] }] } });
    let mut by_variable = pod("variable", None);
    by_variable["spec"] = variable["spec"].clone();
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "new", "annotations": { "eks.amazonaws.com/role-arn": role_arn } } });
    let annotated = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "new", "annotations": { "iam.amazonaws.com/permitted": ".*" } } });
    let grant = json!({ "apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": { "name": "mine" },
        "spec": { "roles": ["*"], "subjects": [{ "namespaces": ["*"] }] } });
    let grants = "/apis/rolegate.dev/v1alpha1/rolegrants";
    for (what, path, object) in [
        (
            "a pod with a role",
            of(namespace, "pods"),
            pod("new", reader),
        ),
        (
            "a pod with a role in a variable",
            of(namespace, "pods"),
            by_variable,
        ),
        (
            "a Deployment with a role",
            deployments.clone(),
            deployment("new", 1, reader),
        ),
        (
            "a service account with a role",
            of(namespace, "serviceaccounts"),
            account,
        ),
        (
            "a namespace that permits roles",
            "/api/v1/namespaces".into(),
            annotated,
        ),
        // The namespace's name may be one that a grant covers.
        (
            "a namespace",
            "/api/v1/namespaces".into(),
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "plain" } }),
        ),
        ("a grant", grants.into(), grant.clone()),
    ] {
        unanswered(what, &jane.post(&path, &object).await?)?;
    }
    let path = format!("{}/app", of(namespace, "pods"));
    let other = json!({ "metadata": { "annotations": { ROLE: "shop-writer" } } });
    let answer = jane.patch(&path, PatchKind::Merge, &other).await?;
    unanswered("another role for a live pod", &answer)?;

    let simple =
        |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "plain" } });
    for (what, path, object) in [
        ("a pod", of(namespace, "pods"), pod("plain", None)),
        (
            "a Deployment",
            deployments.clone(),
            deployment("plain", 1, None),
        ),
        (
            "a ConfigMap",
            of(namespace, "configmaps"),
            simple("ConfigMap"),
        ),
        ("a Secret", of(namespace, "secrets"), simple("Secret")),
        (
            "a service account",
            of(namespace, "serviceaccounts"),
            simple("ServiceAccount"),
        ),
        (
            "a pod of kube-system",
            of("kube-system", "pods"),
            pod("system", reader),
        ),
        ("a pod of ours", of(HOME, "pods"), pod("ours", reader)),
    ] {
        taken(
            &format!("{what} without the webhook"),
            jane.post(&path, &object).await?,
        )?;
    }
    let metadata = |fields: serde_json::Value| json!({ "metadata": fields });
    for (what, path, change) in [
        (
            "a scale",
            format!("{deployments}/web/scale"),
            json!({ "spec": { "replicas": 2 } }),
        ),
        (
            "a live pod's status",
            format!("{path}/status"),
            json!({ "status": { "phase": "Failed" } }),
        ),
        (
            "a live pod's annotation",
            path.clone(),
            metadata(json!({ "annotations": { "a": "b" } })),
        ),
        (
            "a live pod's finalizer",
            path.clone(),
            metadata(json!({ "finalizers": ["example.com/f"] })),
        ),
        (
            "no finalizer",
            path.clone(),
            metadata(json!({ "finalizers": null })),
        ),
    ] {
        let answer = jane.patch(&path, PatchKind::Merge, &change).await?;
        taken(&format!("{what} without the webhook"), answer)?;
    }
    let now = format!("{path}?gracePeriodSeconds=0");
    taken("a deletion without the webhook", jane.delete(&now).await?)?;
    // A user with all rights can always repair the rules.
    let admin = harness.cluster.requests()?;
    let dry = format!("{grants}?dryRun=All");
    taken(
        "a grant of a cluster's master",
        admin.post(&dry, &grant).await?,
    )?;
    let plain = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "plain" } });
    let dry = "/api/v1/namespaces?dryRun=All";
    let answer = admin.post(dry, &plain).await?;
    taken("a namespace of a cluster's master", answer)?;

    harness.test_admission.restart_admission().await?;
    harness.until_allowed(namespace, "shop-reader").await?;
    let answer = harness.try_pod(namespace, "admin").await?;
    refused("a pod after the webhook is back", &answer, &["role/admin"])
}

/// The number of pods in one attempt. It exceeds the number of connections that the API server
/// keeps, so that each attempt needs a new handshake.
const AT_ONCE: usize = 30;

/// Creates pods that must be allowed and denied; fails if one gets no verdict.
async fn load(harness: &WebhookHarness, namespace: &'static str) -> anyhow::Result<()> {
    let mut tries = JoinSet::new();
    let jane = harness.jane()?;
    for number in 0..AT_ONCE {
        let jane = jane.clone();
        tries.spawn(async move {
            let role = ["shop-reader", "admin"][number % 2];
            let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
            let answer = jane.post(&path, &pod("trial", Some(role))).await?;
            match role {
                "admin" => refused("a pod during the renewal", &answer, &["role/admin"]),
                _ => taken("a pod during the renewal", answer).map(drop),
            }
        });
    }
    while let Some(tried) = tries.join_next().await {
        tried??;
    }
    Ok(())
}

/// Returns the certificate in the Secret.
async fn certificate(harness: &WebhookHarness) -> anyhow::Result<Vec<u8>> {
    let secrets = Api::<Secret>::namespaced(harness.cluster.admin()?, HOME);
    let mut data = secrets.get("rolegate-admission-tls").await?.data;
    let certificate = data.as_mut().and_then(|data| data.remove("tls.crt"));
    Ok(certificate.context("the Secret has no certificate")?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_under_load() -> anyhow::Result<()> {
    let _alone = alone().await?;
    let mut harness = WebhookHarness::start(Cluster::start().await?, GRANTS).await?;
    let namespace = "shop";
    harness.shop(namespace).await?;
    let first = certificate(&harness).await?;
    load(&harness, namespace).await?;

    // A controller that needs another name in the certificate renews it in the same steps as an
    // expiring one.
    harness
        .test_admission
        .restart_controller(&harness.cluster, "gate.example.com")
        .await?;
    let end = Instant::now() + 2 * DEADLINE;
    let mut bursts = 0_u32;
    while certificate(&harness).await? == first {
        load(&harness, namespace)
            .await
            .context("before the Secret was written")?;
        bursts += 1;
        ensure!(
            Instant::now() < end,
            "the certificate is not renewed: {}",
            harness.test_admission.controller_log()
        );
    }
    ensure!(
        bursts > 3,
        "the certificate was replaced before its authority was trusted everywhere"
    );
    // New connections get the new certificate.
    for _ in 0..10 {
        load(&harness, namespace)
            .await
            .context("after the Secret was written")?;
    }
    // The configuration trusts only the new authority.
    harness.test_admission.restart_admission().await?;
    load(&harness, namespace)
        .await
        .context("with the new certificate alone")
}
