//! The manifests in the pages of `docs/` change nothing for working pods.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use rolegate_testkit::request::PatchKind;
use rolegate_testkit::{Cluster, Rolegate, eventually, repository};
use serde_json::{Value, json};

use crate::ask::{self, CREDENTIALS};
use crate::fixture::{AgentFixture, DEADLINE, Pod, credentials};

/// The base ARN of all pages and examples.
const BASE: &str = "arn:aws:iam::123456789012:role/k8s/";
const CONFIG: &str = "/apis/rolegate.dev/v1alpha1/rolegateconfigs/cluster";

/// The files of `deploy/` that the pages apply, in commands or code blocks.
fn applied() -> anyhow::Result<BTreeSet<String>> {
    fn pages(folder: &Path, all: &mut Vec<String>) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                pages(&path, all)?;
            } else if path.extension().is_some_and(|ending| ending == "md") {
                all.push(std::fs::read_to_string(&path)?);
            }
        }
        Ok(())
    }
    let mut all = vec![std::fs::read_to_string(repository().join("README.md"))?];
    pages(&repository().join("docs"), &mut all)?;
    let mut files = BTreeSet::new();
    for page in &all {
        let mut is_fenced = false;
        for line in page.lines() {
            if line.trim_start().starts_with("```") {
                is_fenced = !is_fenced;
            }
            let is_command = is_fenced || line.starts_with("    ");
            if !is_command || !line.contains("kubectl") || !line.contains(" apply ") {
                continue;
            }
            let mut words = line.split_whitespace();
            while words.by_ref().any(|word| word == "-f") {
                let file = words.next().unwrap_or_default();
                files.extend(file.starts_with("deploy/").then(|| file.to_owned()));
            }
        }
    }
    Ok(files)
}

/// Returns the requests to STS: roles, names, tags and the rest of a session.
fn sessions(fixture: &AgentFixture, since: usize) -> BTreeSet<BTreeMap<String, String>> {
    let assumed = fixture.sts.assumed().into_iter().skip(since);
    assumed.map(|session| session.asked).collect()
}

/// Starts an agent with the flags of the shipped manifest, except for the base ARN.
async fn agent(fixture: &AgentFixture, base: &str) -> anyhow::Result<Rolegate> {
    let node = format!("--node={}", fixture.node);
    let mut agent = fixture.spawn(&[
        "agent",
        "--redirect=nftables",
        "--host-interface=eni+",
        "--host-ip=10.0.0.1",
        "--host-ipv6=fd10::1",
        &node,
        base,
    ])?;
    fixture.ready(&mut agent).await?;
    Ok(agent)
}

/// Fails unless the pod gets credentials of the role `role_name`.
fn is_served(pod: &Pod) -> anyhow::Result<()> {
    let role_name = ask::get(pod, CREDENTIALS)?;
    ensure!(role_name.status == 200, "{role_name:?}");
    credentials(pod, role_name.body.trim()).map(drop)
}

async fn all_served(pods: &[Pod]) -> anyhow::Result<()> {
    for pod in pods {
        eventually(DEADLINE, async || is_served(pod)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_change_nothing() -> anyhow::Result<()> {
    let mut files = applied()?;
    ensure!(files.contains("deploy/crds.yaml"), "{files:?}");
    // The pages start with `policy adopt`. A reader who uses the example instead loses nothing
    // either.
    files.insert("deploy/examples/rolegateconfig.yaml".into());
    let all_fields = "deploy/examples/rolegateconfig-all-fields.yaml";
    ensure!(!files.contains(all_fields), "a page applies {all_fields}");

    // A RolegateConfig would apply to the other tests too.
    let cluster = &Cluster::start().await?;
    let fixture = AgentFixture::new("examples", cluster).await?;
    let namespaces = ["plain", "limited"].map(|name| fixture.namespace(name));
    cluster.create_namespace(&namespaces[0], &[]).await?;
    let allowed = [("iam.amazonaws.com/allowed-roles", r#"["other"]"#)];
    cluster.create_namespace(&namespaces[1], &allowed).await?;
    let mut pods = Vec::new();
    for (namespace, role, address) in [
        ("plain", "reader", "10.1.0.5"),
        (
            "plain",
            "arn:aws:iam::123456789012:role/elsewhere",
            "10.1.0.6",
        ),
        ("limited", "reader", "10.1.0.7"),
    ] {
        let pod = fixture.pod(address)?;
        let object = fixture.object(namespace, &format!("pod-{}", pods.len()), &pod);
        cluster.run_pod(&object.role(role)).await?;
        pods.push(pod);
    }
    let by_flags = format!("--base-role-arn={BASE}");
    let mut agent = agent(&fixture, &by_flags).await?;
    all_served(&pods).await?;
    let before = sessions(&fixture, 0);
    ensure!(before.len() == 3, "{before:?}");

    cluster
        .apply_manifest("{apiVersion: v1, kind: Namespace, metadata: {name: opa}}")
        .await?;
    cluster.install(&[]).await?;
    cluster.install_kinds().await?;
    for file in &files {
        cluster.apply_file(&repository().join(file)).await?;
        for pod in &pods {
            is_served(pod).with_context(|| format!("after {file}"))?;
        }
    }
    let admin = cluster.requests()?;
    let registered = admin.get(rolegate_testkit::admission::REGISTRATION).await?;
    ensure!(
        registered.status == 404,
        "a webhook that is not there is registered"
    );

    // An agent that starts now uses the configuration from the beginning.
    agent.stop().await?;
    let since = fixture.sts.assumed().len();
    let mut agent = self::agent(&fixture, "--auto-discover-base-arn").await?;
    all_served(&pods).await?;
    assert_eq!(sessions(&fixture, since), before);

    // The configuration is in effect.
    let enforced = json!({ "spec": {
        "namespaceRestrictionsDefault": "deny", "layers": { "namespace": "enforce" } } });
    let patched = admin.patch(CONFIG, PatchKind::Merge, &enforced).await?;
    let _: Value = patched.object()?;
    for pod in &pods {
        eventually(DEADLINE, async || {
            let reply = ask::get(pod, CREDENTIALS)?;
            ensure!(reply.status == 403, "{reply:?}");
            Ok(())
        })
        .await?;
    }
    agent.stop().await?;
    Ok(())
}
