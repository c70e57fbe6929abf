//! A node that is drained: its pods move to the other node.

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{CLIENT, ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::json;

use crate::ask::{Asking, DEADLINE};
use crate::update::{ask_until_stopped, none_failed};

const NAMESPACE: &str = "default";
const MOVED: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn drained_pods_get_their_role_elsewhere_and_others_lose_no_request() -> anyhow::Result<()> {
    let options = Options {
        cni: Cni::Ptp,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    let staying = ClientPod {
        namespace: NAMESPACE,
        name: "staying",
        role: Some("reader"),
        node: Some("node-2"),
        ..ClientPod::default()
    };
    cluster.run_client(&staying).await?;
    // All pods of the Deployment start on node-1.
    cluster.kubectl(&["cordon", "node-2"]).await?;
    cluster.apply(&deployment().to_string()).await?;
    cluster.rolled_out(NAMESPACE, "deployment/moving").await?;
    cluster.kubectl(&["uncordon", "node-2"]).await?;
    asking(&cluster, "staying").has_role("reader").await?;

    let drain = async {
        let drained = async {
            let drain = ["drain", "node-1", "--ignore-daemonsets", "--timeout=200s"];
            cluster.kubectl(&drain).await?;
            let moved = eventually(DEADLINE, async || moved(&cluster).await).await?;
            for pod in &moved {
                asking(&cluster, pod).has_role("writer").await?;
            }
            anyhow::Ok(())
        };
        let drained = drained.await;
        asking(&cluster, "staying")
            .run(&["sh", "-c", ">/tmp/stop"])
            .await?;
        drained
    };
    let (answers, drained) = tokio::join!(
        ask_until_stopped(asking(&cluster, "staying"), "reader"),
        drain
    );
    drained?;
    none_failed(&answers?)?;

    // The drained node keeps its agent, for pods that tolerate the drain.
    cluster.agents_ready().await
}

fn asking<'a>(cluster: &'a TestCluster, pod: &'a str) -> Asking<'a> {
    Asking {
        cluster,
        namespace: NAMESPACE,
        pod,
    }
}

/// Returns the names of the Deployment's pods, once all of them run on node-2.
async fn moved(cluster: &TestCluster) -> anyhow::Result<Vec<String>> {
    let pods = cluster.get(&["pods", "-l", "app=moving"]).await?;
    let pods = pods["items"].as_array().context("no list")?;
    ensure!(pods.len() == MOVED, "{} pods", pods.len());
    let name = |pod: &serde_json::Value| {
        ensure!(pod["spec"]["nodeName"] == "node-2", "{pod}");
        ensure!(pod["status"]["phase"] == "Running", "{pod}");
        Ok(pod["metadata"]["name"]
            .as_str()
            .context("no name")?
            .to_owned())
    };
    pods.iter().map(name).collect()
}

fn deployment() -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "moving", "namespace": NAMESPACE },
        "spec": {
            "replicas": MOVED,
            "selector": { "matchLabels": { "app": "moving" } },
            "template": {
                "metadata": {
                    "labels": { "app": "moving" },
                    "annotations": { "iam.amazonaws.com/role": "writer" },
                },
                "spec": { "containers": [{ "name": "client", "image": CLIENT }] },
            },
        },
    })
}
