//! The pods that get credentials, with both ways to connect pods to their node.

use anyhow::ensure;
use rolegate_devkit::NODE_SECRET_MARKER;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};

use crate::ask::{Asking, CREDENTIALS};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_a_bridge_gets_its_role_and_its_neighbour_nothing() -> anyhow::Result<()> {
    gets_its_role_and_its_neighbour_nothing(Cni::Bridge).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routed_pod_gets_its_role_and_its_neighbour_nothing() -> anyhow::Result<()> {
    gets_its_role_and_its_neighbour_nothing(Cni::Ptp).await
}

async fn gets_its_role_and_its_neighbour_nothing(cni: Cni) -> anyhow::Result<()> {
    let cluster = TestCluster::shared(cni).await?;
    let namespace = "neighbours";
    cluster.create_namespace(namespace).await?;
    let ask = |pod| Asking {
        cluster,
        namespace,
        pod,
    };
    for (pod, role, node) in [
        ("reader", Some("reader"), "node-1"),
        ("writer", Some("writer"), "node-1"),
        ("plain", None, "node-1"),
        ("away", Some("reader"), "node-2"),
    ] {
        let client = ClientPod {
            namespace,
            name: pod,
            role,
            node: Some(node),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
    }
    ask("reader").has_role("reader").await?;
    ask("away").has_role("reader").await?;
    ask("writer").has_role("writer").await?;
    let cli = ["aws", "sts", "get-caller-identity"];
    let cli = ask("reader").run(&cli).await?;
    ensure!(cli.contains("assumed-role/reader/"), "{cli}");

    ask("plain").gets_nothing("reader").await?;
    // A pod with a role does not get the role of another pod either.
    let (status, body) = ask("writer").get(&format!("{CREDENTIALS}reader")).await?;
    ensure!(status != 200, "{body}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_end_what_pods_could_do_without_them() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Ptp,
        ..Options::default()
    };
    let cluster = &TestCluster::start(options).await?;
    let (namespace, pod) = ("default", "plain");
    let client = ClientPod {
        namespace,
        name: pod,
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let plain = Asking {
        cluster,
        namespace,
        pod,
    };
    let (status, body) = plain.get(&format!("{CREDENTIALS}node")).await?;
    ensure!(status == 200 && body.contains(NODE_SECRET_MARKER), "{body}");
    cluster.install_agents().await?;
    plain.gets_nothing("reader").await
}
