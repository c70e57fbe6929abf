//! Rego policies as OPA's users have them: ConfigMaps, denials with the policies' messages, and
//! their status in kube-mgmt's annotation.

use anyhow::{Context, ensure};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::harness::{DEADLINE, WebhookHarness, deployment, refused, taken};

const RULES: &str = r#"
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: { name: cluster }
spec:
  baseRoleArn: "arn:aws:iam::123456789012:role/"
  layers: { namespace: "off", grants: "off", rego: enforce }
  exemptNamespaces: [kube-system, rolegate-system]
  ruleWriters: { groups: [platform] }
"#;
const ARTICLE: &str =
    include_str!("../../../crates/rego/tests/fixtures/deployment-create-whitelist-role-ns.rego");
/// A text that is not a policy.
const BROKEN: &str = "package kubernetes.admission\n\ndeny[msg] {\n";
const MAPS: &str = "/api/v1/namespaces/opa/configmaps";
const STATUS: &str = "openpolicyagent.org/kube-mgmt-status";

async fn harness() -> anyhow::Result<&'static WebhookHarness> {
    static SHARED: OnceCell<WebhookHarness> = OnceCell::const_new();
    SHARED
        .get_or_try_init(|| async {
            let harness = WebhookHarness::start(Cluster::start().await?, RULES).await?;
            for namespace in ["payments", "search"] {
                harness.cluster.create_namespace(namespace, &[]).await?;
            }
            Ok(harness)
        })
        .await
}

/// Writes a policy, as a user with the right to do so.
async fn write(harness: &WebhookHarness, name: &str, text: &str) -> anyhow::Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "labels": { "openpolicyagent.org/policy": "rego" } },
        "data": { "main": text },
    });
    let path = format!("{MAPS}/{name}?fieldManager=ann&force=true");
    let ann = harness.member("platform")?;
    let answer = ann.patch(&path, PatchKind::Apply, &map).await?;
    taken(&format!("policy {name}"), answer).map(drop)
}

/// Creates a Deployment in a namespace, as a dry run.
async fn try_deployment(
    harness: &WebhookHarness,
    namespace: &str,
    role: Option<&str>,
) -> anyhow::Result<rolegate_testkit::request::Answer> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments?dryRun=All");
    harness
        .jane()?
        .post(&path, &deployment("web", 1, role))
        .await
}

/// Fails unless the policy decides as written.
async fn decides(harness: &WebhookHarness) -> anyhow::Result<()> {
    let answer = try_deployment(harness, "search", Some("payments-reader")).await?;
    let says = [
        "role payments-reader is not on the list of namespace search",
        "(layer rego, rule opa/deployment-create-whitelist-role-ns)",
    ];
    refused(
        "a Deployment with a role of another namespace",
        &answer,
        &says,
    )?;
    for (namespace, role) in [
        ("payments", Some("payments-reader")),
        ("search", Some("search-reader")),
        ("search", None),
    ] {
        let answer = try_deployment(harness, namespace, role).await?;
        taken(
            &format!("a Deployment of {namespace} with {role:?}"),
            answer,
        )?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_article_s_policy_refuses_in_its_own_words() -> anyhow::Result<()> {
    let harness = harness().await?;
    let name = "deployment-create-whitelist-role-ns";
    write(harness, name, ARTICLE).await?;
    eventually(DEADLINE, async || decides(harness).await).await?;

    // An invalid change: the last valid version stays in use. Another policy shows that the webhook
    // has received the change.
    write(harness, name, BROKEN).await?;
    let (deny, _helper) = ARTICLE.split_once("allowed(namespace, role) {").unwrap();
    let marker = deny
        .replace("not allowed(namespace, role)", "role == \"marker\"")
        .replace("role %v is not on the list of namespace %v", "marker %v %v");
    write(harness, "marker", &marker).await?;
    eventually(DEADLINE, async || {
        let answer = try_deployment(harness, "search", Some("marker")).await?;
        refused(
            "what another policy refuses",
            &answer,
            &["marker marker search"],
        )
    })
    .await?;
    decides(harness)
        .await
        .context("a policy that is broken takes its last good state away")?;

    let corrected = ARTICLE.replace(
        "{\"search-reader\"}",
        "{\"search-reader\", \"payments-reader\"}",
    );
    write(harness, name, &corrected).await?;
    eventually(DEADLINE, async || {
        let answer = try_deployment(harness, "search", Some("payments-reader")).await?;
        taken("a Deployment that the corrected policy allows", answer)
    })
    .await?;
    let answer = try_deployment(harness, "search", Some("admin")).await?;
    refused(
        "a Deployment",
        &answer,
        &["role admin is not on the list of namespace search"],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_policy_is_written_back() -> anyhow::Result<()> {
    let harness = harness().await?;
    let name = "told";
    let harmless =
        "package kubernetes.told\n\ndeny[msg] {\n    input.never\n    msg := \"never\"\n}\n";
    let admin = harness.cluster.requests()?;
    let path = format!("{MAPS}/{name}");
    for (text, wanted) in [(harmless, "ok"), (BROKEN, "error"), (harmless, "ok")] {
        write(harness, name, text).await?;
        eventually(DEADLINE, async || {
            let map = taken("the ConfigMap", admin.get(&path).await?)?;
            let annotation = map["metadata"]["annotations"][STATUS].as_str();
            let status: Value = serde_json::from_str(annotation.context("no status is written")?)?;
            ensure!(status["status"] == wanted, "{status} instead of {wanted}");
            ensure!(
                wanted == "ok" || status["error"].is_object(),
                "no word about why: {status}"
            );
            Ok(())
        })
        .await
        .with_context(|| format!("the status of a policy that is {wanted}"))?;
    }
    // All of this works with the rights of the manifest.
    for log in [
        harness.test_admission.controller_log(),
        harness.test_admission.admission.log(),
    ] {
        let denied = log.lines().find(|line| line.contains("orbidden"));
        ensure!(
            denied.is_none(),
            "the manifest's rights don't suffice: {denied:?}"
        );
    }
    Ok(())
}
