//! A node that fails and is not replaced: its pods move to the other node.

use anyhow::Context;
use rolegate_testkit::nodes::{CLIENT, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::json;

use crate::ask::{Asking, DEADLINE};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until Kubernetes gives a node up: make test-slow"]
async fn a_dead_nodes_pods_get_their_role_on_another_node() -> anyhow::Result<()> {
    let options = Options {
        cni: Cni::Ptp,
        ..Options::default()
    };
    let mut cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    cluster.apply(&deployment().to_string()).await?;
    cluster.rolled_out("default", "deployment/reader").await?;
    let (pod, node) = running(&cluster, "").await?;
    let namespace = "default";
    let asking = Asking {
        cluster: &cluster,
        namespace,
        pod: &pod,
    };
    asking.has_role("reader").await?;

    cluster.kill_node(&node)?;
    let moved = eventually(DEADLINE, async || running(&cluster, &node).await);
    let (pod, _) = moved.await?;
    let asking = Asking {
        cluster: &cluster,
        namespace,
        pod: &pod,
    };
    asking.has_role("reader").await
}

/// Returns the Deployment's pod and its node, which is not `dead`.
async fn running(cluster: &TestCluster, dead: &str) -> anyhow::Result<(String, String)> {
    let pods = cluster.get(&["pods", "-l", "app=reader"]).await?;
    for pod in pods["items"].as_array().context("no list")? {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if pod["status"]["phase"] == "Running" && node != dead {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            return Ok((name.to_owned(), node.to_owned()));
        }
    }
    anyhow::bail!("no pod but {dead:?} runs: {pods}")
}

fn deployment() -> serde_json::Value {
    let soon = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "reader", "namespace": "default" },
        "spec": {
            "selector": { "matchLabels": { "app": "reader" } },
            "template": {
                "metadata": {
                    "labels": { "app": "reader" },
                    "annotations": { "iam.amazonaws.com/role": "reader" },
                },
                "spec": {
                    "containers": [{ "name": "client", "image": CLIENT }],
                    "tolerations": [
                        soon("node.kubernetes.io/unreachable"), soon("node.kubernetes.io/not-ready"),
                    ],
                },
            },
        },
    })
}
