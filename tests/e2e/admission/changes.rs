//! A change of the rules takes effect with the next request, without a restart.

use anyhow::{Context, ensure};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, eventually};
use serde_json::json;

use super::harness::{DEADLINE, GRANTS, WebhookHarness, alone, refused, taken};

const CONFIG: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_change_counts_at_the_gate_at_once() -> anyhow::Result<()> {
    let _alone = alone().await?;
    let harness = WebhookHarness::start(Cluster::start().await?, GRANTS).await?;
    let namespace = "shop";
    harness.cluster.create_namespace(namespace, &[]).await?;
    let (admin, ann) = (harness.cluster.requests()?, harness.member("platform")?);
    harness.until_refused(namespace, "reader").await?;

    // A grant is created, changed, and deleted.
    harness.grant(namespace, &["reader"]).await?;
    harness.until_allowed(namespace, "reader").await?;
    harness.grant(namespace, &["writer"]).await?;
    harness.until_refused(namespace, "reader").await?;
    harness.until_allowed(namespace, "writer").await?;
    let grant = format!("/apis/rolegate.dev/v1alpha1/rolegrants/{namespace}");
    taken("the grant's deletion", ann.delete(&grant).await?)?;
    harness.until_refused(namespace, "writer").await?;

    // The layer is first in audit mode, then off; then the namespace's annotation decides.
    let layers = async |layers: serde_json::Value| {
        let change = json!({ "spec": { "layers": layers } });
        let answer = ann.patch(CONFIG, PatchKind::Merge, &change).await?;
        taken("other layers", answer)
    };
    layers(json!({ "grants": "audit" })).await?;
    eventually(DEADLINE, async || {
        let answer = harness.try_pod(namespace, "writer").await?;
        let warned = answer.warnings.join("\n");
        taken("a pod that is only told about", answer)?;
        ensure!(
            warned.contains("rolegate would deny") && warned.contains("role/writer"),
            "no warning of what would be refused: {warned:?}"
        );
        Ok(())
    })
    .await?;
    let told = harness.test_admission.admission.log();
    ensure!(told.contains("request would be denied"), "{told}");
    let metrics = harness.test_admission.metrics().await?;
    let counted = |line: &str| {
        let count =
            line.strip_prefix("rolegate_decisions_total{enforcement_point=\"admission\",layer=\"grants\",mode=\"audit\",result=\"denied\"} ");
        count.is_some_and(|count| count != "0")
    };
    ensure!(metrics.lines().any(counted), "not counted: {metrics}");
    // The leader watches the rules as well, and reports them.
    let controller = harness.test_admission.controller.as_ref();
    let controller = controller.context("no controller")?;
    eventually(DEADLINE, async || {
        let log = controller.log();
        let mut lines = log.lines().filter(|line| line.contains("rules in force"));
        let is_audit = |line: &str| line.contains("grants_layer=\"audit\"");
        ensure!(lines.any(is_audit), "{log}");
        Ok(())
    })
    .await?;
    layers(json!({ "grants": "off" })).await?;
    eventually(DEADLINE, async || {
        let answer = harness.try_pod(namespace, "writer").await?;
        ensure!(answer.warnings.is_empty(), "{:?}", answer.warnings);
        taken("a pod that no rule is about", answer)
    })
    .await?;
    layers(json!({ "namespace": "enforce" })).await?;
    let answer = harness.until_refused(namespace, "writer").await?;
    refused(
        "a role that no namespace allows",
        &answer,
        &["layer namespace"],
    )?;
    let allowed = [("iam.amazonaws.com/allowed-roles", Some(r#"["writer"]"#))];
    harness
        .cluster
        .annotate_namespace(namespace, &allowed)
        .await?;
    harness.until_allowed(namespace, "writer").await?;

    // A default role applies to pods that name none: the registration changes, so that the webhook
    // reviews them too.
    let plain = super::harness::pod("plain", None);
    let pods = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    taken(
        "a pod without a role",
        harness.jane()?.post(&pods, &plain).await?,
    )?;
    let default = [("iam.amazonaws.com/default-role", Some("admin"))];
    harness
        .cluster
        .annotate_namespace(namespace, &default)
        .await?;
    eventually(DEADLINE, async || {
        let answer = harness.jane()?.post(&pods, &plain).await?;
        refused(
            "a pod with a default role that is refused",
            &answer,
            &["the default"],
        )
    })
    .await?;

    // Without its configuration the webhook denies requests. After the configuration is restored,
    // it allows them again.
    let mut config = taken("the configuration", admin.get(CONFIG).await?)?;
    taken("its deletion", ann.delete(CONFIG).await?)?;
    let answer = harness.until_refused(namespace, "writer").await?;
    refused("a pod without configuration", &answer, &["RolegateConfig"])?;
    config["metadata"] = json!({ "name": "cluster" });
    let all = "/apis/rolegate.dev/v1alpha1/rolegateconfigs";
    taken("the configuration again", ann.post(all, &config).await?)?;
    harness.until_allowed(namespace, "writer").await
}
