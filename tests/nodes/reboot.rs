//! A node that loses power and starts again.

use anyhow::ensure;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};

use crate::ask::{Asking, no_secrets};

/// The unit of `deploy/rolegate-redirect.service`; the test node has no systemd.
const REDIRECT: &str =
    "ROLEGATE_HOST_INTERFACE=auto rolegate redirect apply --backend auto --host-ip \"$HOST_IP\"";
/// The pod requests the node's role first at each start.
const FIRST: &str = "curl -s -m 5 http://169.254.169.254/latest/meta-data/iam/security-credentials/node; \
    echo asked; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_rebooted_node_get_their_role_again_and_never_the_nodes() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Bridge,
        before_kubelet: REDIRECT.to_owned(),
        ..Options::default()
    };
    let mut cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    let (namespace, pod) = ("default", "reader");
    let client = ClientPod {
        namespace,
        name: pod,
        role: Some("reader"),
        script: Some(FIRST),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let asking = Asking {
        cluster: &cluster,
        namespace,
        pod,
    };
    asking.has_role("reader").await?;
    let before = cluster.get(&["pod", pod]).await?;

    cluster.reboot_node("node-1").await?;
    let asking = Asking {
        cluster: &cluster,
        namespace,
        pod,
    };
    asking.has_role("reader").await?;
    let after = cluster.get(&["pod", pod]).await?;
    ensure!(
        before["metadata"]["uid"] == after["metadata"]["uid"],
        "{after}"
    );
    let restarts = &after["status"]["containerStatuses"][0]["restartCount"];
    ensure!(*restarts == 1, "{after}");
    for previous in ["--previous=true", "--previous=false"] {
        let log = cluster.kubectl(&["logs", pod, previous]).await?;
        ensure!(log.contains("asked"), "{log}");
        no_secrets(&log)?;
    }
    Ok(())
}
