//! Denials as kubectl prints them.

use std::process::Stdio;

use anyhow::{Context, ensure};
use rolegate_testkit::Cluster;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::harness::{ROLE, WebhookHarness, deployment, pod};

struct Ran {
    succeeded: bool,
    told: String,
}

/// Runs kubectl as a developer, with an object on its standard input.
async fn kubectl(cluster: &Cluster, arguments: &[&str], input: &Value) -> anyhow::Result<Ran> {
    let home = cluster.dir().join("kubectl");
    let kubeconfig = cluster.admin_kubeconfig()?;
    let mut child = Command::new("kubectl")
        .args(arguments)
        .args([
            "--as=jane",
            "--as-group=developers",
            "--as-group=system:authenticated",
        ])
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--cache-dir={}", home.display()))
        .env("HOME", &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("kubectl is missing: run 'make setup'")?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(input.to_string().as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    let told = [output.stdout, output.stderr].concat();
    Ok(Ran {
        succeeded: output.status.success(),
        told: String::from_utf8(told)?,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_what_is_refused_and_by_which_rule() -> anyhow::Result<()> {
    let harness = WebhookHarness::shared().await?;
    let namespace = "kubectl";
    harness.shop(namespace).await?;
    let in_namespace = format!("--namespace={namespace}");
    let create = ["create", &in_namespace, "-f", "-"];
    let apply = ["apply", &in_namespace, "-f", "-"];
    let server_side = ["apply", "--server-side", &in_namespace, "-f", "-"];

    for (what, arguments, object) in [
        ("a pod", &create[..], pod("shopper", Some("admin"))),
        (
            "a Deployment",
            &create,
            deployment("shopper", 1, Some("admin")),
        ),
        ("an applied pod", &apply, pod("shopper", Some("admin"))),
        (
            "a pod that the server merges",
            &server_side,
            pod("shopper", Some("admin")),
        ),
    ] {
        let ran = kubectl(&harness.cluster, arguments, &object).await?;
        ensure!(!ran.succeeded, "{what} was taken: {}", ran.told);
        for text in [
            "denied the request",
            "role arn:aws:iam::123456789012:role/admin is denied",
            "layer grants",
            ROLE,
        ] {
            ensure!(ran.told.contains(text), "{what}, {text:?}: {}", ran.told);
        }
    }

    let live = pod("live", Some("shop-reader"));
    let ran = kubectl(&harness.cluster, &create, &live).await?;
    ensure!(ran.succeeded, "{}", ran.told);
    let annotate = |role: &str| format!("{ROLE}={role}");
    let annotate = [annotate("shop-writer"), annotate("admin")];
    let [allowed, refused] = annotate.each_ref().map(|annotation| {
        [
            "annotate",
            "--overwrite",
            &in_namespace,
            "pod/live",
            annotation,
        ]
    });
    let ran = kubectl(&harness.cluster, &allowed, &json!(null)).await?;
    ensure!(ran.succeeded, "{}", ran.told);
    let ran = kubectl(&harness.cluster, &refused, &json!(null)).await?;
    ensure!(!ran.succeeded, "a live pod took another role: {}", ran.told);
    let says = "role arn:aws:iam::123456789012:role/admin is denied: no RoleGrant covers the role";
    ensure!(ran.told.contains(says), "{}", ran.told);
    Ok(())
}
