//! Missing rules: the webhook stays in the Service's endpoints and reports what is missing.

use anyhow::ensure;
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, Rolegate, eventually};
use serde_json::{Value, json};

use super::harness::{DEADLINE, GRANTS, WebhookHarness, alone, pod, refused, taken};

const ALL: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs";
const CONFIG: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";

/// Waits until the webhook is ready, with this note about its rules, and the metric for the alert
/// has the expected value.
async fn until_told(harness: &WebhookHarness, missing: Option<&str>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let ready = harness.test_admission.operators("/readyz").await?;
        // Without a ready endpoint, no denial could contain the reason.
        ensure!(ready.starts_with("HTTP/1.1 200"), "not ready: {ready}");
        let note = ready.lines().find(|line| line.starts_with("[!] rules: "));
        ensure!(note.is_some() == missing.is_some(), "{ready}");
        ensure!(
            missing.is_none_or(|part| note.is_some_and(|note| note.contains(part))),
            "{ready}"
        );
        let metrics = harness.test_admission.operators("/metrics").await?;
        let alarm = format!("\nrolegate_rules_missing {}\n", u8::from(missing.is_some()));
        ensure!(metrics.contains(&alarm), "no {alarm:?}");
        Ok(())
    })
    .await
}

/// Fails unless the webhook denies a pod's role with the reason.
async fn refuses(harness: &WebhookHarness, namespace: &str, missing: &str) -> anyhow::Result<()> {
    let answer = harness.until_refused(namespace, "shop-reader").await?;
    refused("a pod with a role", &answer, &[missing])
}

/// Fails unless a pod without a role is allowed.
async fn lets_pass(harness: &WebhookHarness, namespace: &str) -> anyhow::Result<()> {
    let pods = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    let plain = harness.jane()?.post(&pods, &pod("plain", None)).await?;
    taken("a pod without a role", plain).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_10_a_gate_whose_rules_are_missing_is_ready_and_says_what_is_missing()
-> anyhow::Result<()> {
    let _alone = alone().await?;
    let mut harness = WebhookHarness::start(Cluster::start().await?, GRANTS).await?;
    let namespace = "shop";
    harness.shop(namespace).await?;
    until_told(&harness, None).await?;
    let admin = harness.cluster.requests()?;
    let mut config: Value = taken("the configuration", admin.get(CONFIG).await?)?;
    config["metadata"] = json!({ "name": "cluster" });

    // The configuration is deleted, and the webhook restarted without it.
    taken("its deletion", admin.delete(CONFIG).await?)?;
    let missing = "the cluster's RolegateConfig named cluster is missing";
    refuses(&harness, namespace, missing).await?;
    lets_pass(&harness, namespace).await?;
    until_told(&harness, Some(missing)).await?;
    harness.test_admission.restart_admission().await?;
    refuses(&harness, namespace, missing).await?;
    lets_pass(&harness, namespace).await?;
    until_told(&harness, Some(missing)).await?;
    // The command line reports the same.
    let kubeconfig = harness.cluster.admin_kubeconfig()?;
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let explain = [
        "policy",
        "explain",
        "--role=shop-reader",
        "-n",
        namespace,
        // With the webhook's flags, since the cluster has no agents.
        "--cluster-config=required",
        &kubeconfig,
    ];
    let told = Rolegate::output(&explain).await?;
    let text = String::from_utf8_lossy(&told.stdout);
    ensure!(
        told.status.code() == Some(3) && text.contains(missing),
        "{told:?}"
    );
    taken("the configuration", admin.post(ALL, &config).await?)?;
    harness.until_allowed(namespace, "shop-reader").await?;
    until_told(&harness, None).await?;

    // A required policy is missing. It could apply to any object, so pods without a role are denied
    // too, as soon as the API server sends them to the webhook.
    let rego = json!({ "spec": { "layers": { "rego": "enforce" },
        "rego": { "required": [{ "namespace": "opa", "name": "must" }] } } });
    taken(
        "a required policy",
        admin.patch(CONFIG, PatchKind::Merge, &rego).await?,
    )?;
    refuses(&harness, namespace, "opa/must").await?;
    until_told(&harness, Some("opa/must")).await?;
    let policy = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "must", "namespace": "opa",
            "labels": { "openpolicyagent.org/policy": "rego" } },
        "data": { "main": "package kubernetes.admission\n\ndeny[msg] {\n    input.never\n    msg := \"never\"\n}\n" },
    });
    harness.cluster.apply_manifest(&policy.to_string()).await?;
    harness.until_allowed(namespace, "shop-reader").await?;
    until_told(&harness, None).await
}
