//! The shipped DaemonSet on real nodes.

use std::collections::BTreeSet;

use anyhow::ensure;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::Cni;

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_a_ready_agent() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let agents = ["pods", "-n", "rolegate-system"];
    let agents = cluster.get(&agents).await?;
    let mut nodes = BTreeSet::new();
    for agent in agents["items"].as_array().into_iter().flatten() {
        nodes.insert(agent["spec"]["nodeName"].as_str().unwrap_or_default());
    }
    ensure!(nodes == BTreeSet::from(["node-1", "node-2"]), "{nodes:?}");
    for node in cluster.nodes() {
        let ready = "curl -sS --fail 127.0.0.1:9090/readyz";
        node.shell(ready).await?.ok()?;
        let rules = node.shell("nft list ruleset").await?.ok()?;
        ensure!(rules.contains("169.254.169.254"), "{rules}");
    }
    Ok(())
}
