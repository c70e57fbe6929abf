//! A node switches from a standalone agent to one with a broker, in place, as the DaemonSet's
//! rollout does it.

use anyhow::ensure;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::DeleteParams;
use rolegate_devkit::ImdsOptions;
use rolegate_testkit::{Cluster, Rolegate};
use tokio::sync::OnceCell;

use super::harness::{BrokerHarness, HOME, Node};
use crate::ask::{self, CREDENTIALS};
use crate::asking::Asking;
use crate::fixture::DEADLINE;

/// A separate cluster, whose agents have the rights of the standalone agents' manifest at first.
async fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_try_init(async || {
            let cluster = Cluster::start().await?;
            let manifests = ["crds", "rolegate-agent", "rolegate-broker"];
            cluster.install(&manifests).await?;
            Ok(cluster)
        })
        .await
}

async fn apply(cluster: &Cluster, manifest: &str) -> anyhow::Result<()> {
    cluster.install(&[manifest]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_moves_from_alone_to_brokered() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let harness = BrokerHarness::within(cluster, "moving", 9).await?;
    cluster.create_namespace(&harness.named("a"), &[]).await?;
    // During the migration, pods' roles trust the nodes' role too.
    let node = harness.node_with(1, ImdsOptions::default()).await?;
    let pod = harness.pod(&node, 5)?;
    let object = harness.object(&node, "a", "asking", &pod).role("reader");
    cluster.run_pod(&object).await?;
    let rights = cluster
        .service_account_token(HOME, "rolegate-agent")
        .await?;
    let flags = ["--imds-v2=required"];
    let way_out = harness.way_out(&node)?;
    let alone = harness.agent_alone(&node, &rights, &flags).await?;
    let token = ask::token(&pod)?;

    let header = ("X-aws-ec2-metadata-token", token.as_str());
    let mut brokered = Asking::during(&pod, "reader", &[header], async |asking| {
        let brokered = roll_out(&harness, &node, asking, alone, &flags).await?;
        drop(way_out);
        asking.more(50).await?;
        Ok(brokered)
    })?;
    // The new agent responds. The redirect rules of the old one are still in place.
    assert_eq!(ask::get(&pod, CREDENTIALS)?.status, 401);
    let rules = node.lab.node().exec("nft list table inet rolegate")?;
    ensure!(rules.contains("8181"), "{rules}");
    assert!(!node.called_out(), "{}", brokered.log());
    assert!(brokered.stop().await?.success());
    Ok(())
}

/// Steps 3 to 5 of the how-to, for a cluster of one node.
async fn roll_out(
    harness: &BrokerHarness,
    node: &Node,
    asking: &Asking,
    mut alone: Rolegate,
    flags: &[&str],
) -> anyhow::Result<Rolegate> {
    asking.more(50).await?;
    let broker = harness.broker(1, &["--layer=namespace=off"]).await?;
    apply(harness.cluster, "rolegate-agent-broker").await?;
    let mut brokered = harness.unready_agent(node, flags)?;
    brokered.wait_for_line("took over", DEADLINE).await?;
    node.ready(&mut brokered).await?;
    asking.more(50).await?;
    ensure!(
        alone.exited()?.is_none(),
        "it left by itself: {}",
        alone.log()
    );
    let status = alone.stop().await?;
    ensure!(status.success(), "the old agent ended with {status}");
    asking.more(50).await?;

    let (client, now) = (harness.cluster.admin()?, DeleteParams::default());
    let (roles, bindings) = (
        Api::<ClusterRole>::all(client.clone()),
        Api::<ClusterRoleBinding>::all(client),
    );
    roles.delete("rolegate-agent", &now).await?;
    bindings.delete("rolegate-agent", &now).await?;
    asking.more(50).await?;
    // Credentials that are requested now are those that the broker sent.
    let streams = harness.metric(1, r#"rolegate_broker_streams{use="serving"}"#)?;
    ensure!(streams == 1, "{streams} streams: {}", broker.log());
    Ok(brokered)
}
