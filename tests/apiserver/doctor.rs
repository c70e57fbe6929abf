//! `rolegate doctor` on a real API server with RBAC: it names what is missing, and is quiet about
//! what is in place.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use rolegate_testkit::request::Requests;
use rolegate_testkit::{Cluster, Rolegate, TestPod, eventually};
use serde_json::{Value, json};

const NAMESPACE: &str = "rolegate-system";
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Runs the command, and returns its exit code and the checks by name.
async fn examine(
    kubeconfig: &Path,
    flags: &[&str],
) -> anyhow::Result<(Option<i32>, BTreeMap<String, Value>)> {
    let kubeconfig = kubeconfig.display().to_string();
    let first = ["doctor", "-o", "json", "--kubeconfig", &kubeconfig];
    let output = Rolegate::output(&[&first, flags].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).context(error)?;
    let checks = report["checks"].as_array().context("no checks")?;
    let named = checks.iter().map(|check| {
        let name = check["name"].as_str().unwrap_or_default().to_owned();
        (name, check.clone())
    });
    Ok((output.status.code(), named.collect()))
}

fn expect(checks: &BTreeMap<String, Value>, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, status) in expected {
        let check = checks.get(*name).with_context(|| format!("no {name}"))?;
        ensure!(
            check["status"] == *status,
            "{name} is not {status}: {check:#}"
        );
    }
    Ok(())
}

/// Examines the cluster until the checks have these statuses, and returns them.
async fn examined(
    kubeconfig: &Path,
    expected: &[(&str, &str)],
) -> anyhow::Result<BTreeMap<String, Value>> {
    eventually(DEADLINE, async || {
        let (_, checks) = examine(kubeconfig, &[]).await?;
        expect(&checks, expected)?;
        Ok(checks)
    })
    .await
}

/// Sets the status of a pod, as its kubelet would, with the condition `Ready`.
async fn report_ready(admin: &Requests, name: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
    let mut pod = admin.get(&path).await?.object()?;
    pod["status"]["phase"] = "Running".into();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    admin.put(&format!("{path}/status"), &pod).await?.object()?;
    Ok(())
}

/// A cluster with a node and the namespace of rolegate.
async fn started() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start().await?;
    cluster.create_namespace(NAMESPACE, &[]).await?;
    cluster.create_node("node-1", [192, 0, 2, 1].into()).await?;
    let nodes = "/api/v1/nodes/node-1";
    let admin = cluster.requests()?;
    let mut node = admin.get(nodes).await?.object()?;
    node["metadata"]["labels"]["kubernetes.io/os"] = "linux".into();
    admin.put(nodes, &node).await?.object()?;
    Ok(cluster)
}

#[tokio::test]
async fn doctor_names_what_is_wrong() -> anyhow::Result<()> {
    let cluster = started().await?;
    let kubeconfig = cluster.admin_kubeconfig()?;
    // Nothing is installed.
    let (code, checks) = examine(&kubeconfig, &[]).await?;
    ensure!(code == Some(3), "{code:?}");
    expect(
        &checks,
        &[
            ("kubernetes-version", "ok"),
            ("custom-resources", "warning"),
            ("rights", "notChecked"),
            ("agents", "problem"),
            ("layers", "notChecked"),
            ("conditions", "notChecked"),
            ("webhook", "ok"),
        ],
    )?;
    // Installed, without a controller manager that would create pods.
    cluster.install_kinds().await?;
    cluster
        .install(&["rolegate-agent", "rolegate-admission"])
        .await?;
    // The API server's authorizer watches RBAC, so that new rights take a moment.
    let checks = examined(
        &kubeconfig,
        &[
            // The API server's own form of the definitions has all fields of this version.
            ("custom-resources", "ok"),
            ("rights", "ok"),
            ("agents", "problem"),
            ("admission", "problem"),
            ("controller", "problem"),
            ("leader", "problem"),
            ("layers", "problem"),
            ("webhook", "problem"),
            ("versions", "notChecked"),
        ],
    )
    .await?;
    let message = checks["agents"]["findings"][0]["message"].to_string();
    ensure!(message.contains("node node-1 has no agent"), "{message}");
    // With a pod on the node, rules, and one right less.
    cluster
        .create_service_account(NAMESPACE, "rolegate-agent")
        .await?;
    let agent = TestPod::new(NAMESPACE, "rolegate-agent-x", "node-1")
        .label("app.kubernetes.io/name", "rolegate-agent")
        .host_network();
    cluster.create_pod(&agent).await?;
    let admin = cluster.requests()?;
    report_ready(&admin, "rolegate-agent-x").await?;
    let config = json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
        "metadata": {"name": "cluster"}, "spec": {"layers": {"grants": "enforce"}}});
    cluster.apply_manifest(&config.to_string()).await?;
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/rolegate-agent";
    let mut rights = admin.get(role).await?.object()?;
    rights["rules"][0]["verbs"] = json!(["get", "list"]);
    admin.put(role, &rights).await?.object()?;
    let checks = examined(
        &kubeconfig,
        &[
            ("agents", "ok"),
            ("layers", "ok"),
            ("rights", "problem"),
            ("versions", "ok"),
            // The agent serves its conditions on its node only.
            ("conditions", "notChecked"),
        ],
    )
    .await?;
    let message = checks["rights"]["findings"].to_string();
    ensure!(message.contains("may not watch pods"), "{message}");
    ensure!(message.contains("watch namespaces"), "{message}");
    Ok(())
}

#[tokio::test]
async fn doctor_names_the_rights_that_a_user_lacks() -> anyhow::Result<()> {
    let cluster = started().await?;
    cluster.create_service_account(NAMESPACE, "guest").await?;
    let token = cluster.service_account_token(NAMESPACE, "guest").await?;
    let kubeconfig = cluster.kubeconfig_for_token("guest", &token)?;
    let (code, checks) = examine(&kubeconfig, &[]).await?;
    // What may not be read is neither a problem nor a pass.
    ensure!(code == Some(0), "{code:?} {checks:#?}");
    for (name, check) in &checks {
        let expected = if name == "kubernetes-version" {
            "ok"
        } else {
            "notChecked"
        };
        ensure!(check["status"] == expected, "{check:#}");
    }
    let message = checks["agents"]["summary"].to_string();
    let expected = "not permitted to list daemonsets.apps in namespace rolegate-system";
    ensure!(message.contains(expected), "{message}");
    Ok(())
}

#[tokio::test]
async fn doctor_explains_a_denied_pod() -> anyhow::Result<()> {
    let cluster = started().await?;
    let kubeconfig = cluster.admin_kubeconfig()?;
    cluster.install_kinds().await?;
    let config = json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
        "metadata": {"name": "cluster"}, "spec": {"layers": {"namespace": "enforce"}}});
    cluster.apply_manifest(&config.to_string()).await?;
    let allowed = [(
        "iam.amazonaws.com/allowed-roles",
        "[\"arn:aws:iam::123456789012:role/a\"]",
    )];
    cluster.create_namespace("shop", &allowed).await?;
    let pod = TestPod::new("shop", "api-0", "node-1")
        .role("arn:aws:iam::123456789012:role/b")
        .address([192, 0, 2, 9]);
    cluster.run_pod(&pod).await?;
    let (code, checks) = examine(&kubeconfig, &["--pod", "shop/api-0"]).await?;
    ensure!(code == Some(3), "{code:?}");
    expect(
        &checks,
        &[
            ("pod", "ok"),
            ("role", "ok"),
            ("decision", "problem"),
            ("sdk", "ok"),
            ("agent", "problem"),
            ("events", "ok"),
        ],
    )?;
    let advice = checks["decision"]["findings"][0]["advice"].as_str();
    let command = "kubectl annotate namespace shop --overwrite iam.amazonaws.com/allowed-roles='[\"arn:aws:iam::123456789012:role/a\",\"arn:aws:iam::123456789012:role/b\"]'";
    ensure!(
        advice.is_some_and(|advice| advice.ends_with(command)),
        "{advice:?}"
    );
    let (code, checks) = examine(&kubeconfig, &["--pod", "none", "-n", "shop"]).await?;
    ensure!(code == Some(3), "{code:?}");
    expect(&checks, &[("pod", "problem"), ("decision", "notChecked")])?;
    Ok(())
}
