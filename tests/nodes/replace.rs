//! A node that fails, and a new one that replaces it.

use anyhow::ensure;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};

use crate::ask::Asking;

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_new_node_get_their_role_after_another_was_lost() -> anyhow::Result<()> {
    let options = Options {
        nodes: 2,
        cni: Cni::Ptp,
        ..Options::default()
    };
    let mut cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    let namespace = "default";
    for (pod, node) in [("lost", "node-1"), ("kept", "node-2")] {
        cluster.run_client(&reader(pod, node)).await?;
        let asking = Asking {
            cluster: &cluster,
            namespace,
            pod,
        };
        asking.has_role("reader").await?;
    }
    let new = cluster.replace_node("node-1").await?;
    ensure!(new == "node-3", "{new}");
    cluster.agents_ready().await?;
    cluster.run_client(&reader("fresh", &new)).await?;
    for pod in ["fresh", "kept"] {
        let asking = Asking {
            cluster: &cluster,
            namespace,
            pod,
        };
        asking.has_role("reader").await?;
    }
    Ok(())
}

fn reader<'a>(name: &'a str, node: &'a str) -> ClientPod<'a> {
    ClientPod {
        namespace: "default",
        name,
        role: Some("reader"),
        node: Some(node),
        ..ClientPod::default()
    }
}
