//! The first pod of a new node, before the node's agent runs.

use anyhow::ensure;
use rolegate_devkit::NODE_ACCESS_KEY_ID;
use rolegate_testkit::nodes::{CLIENT, ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, DEADLINE, no_secrets};

/// A static pod starts before the kubelet has reached the API server, and requests the node's role
/// until it is deleted. Only the third node lacks the unit of `deploy/rolegate-redirect.service`.
const BOOT: &str = r#"
cat >/etc/kubernetes/manifests/first.yaml <<EOF
apiVersion: v1
kind: Pod
metadata: { name: first, namespace: default }
spec:
  containers:
    - name: client
      image: IMAGE
      command:
        - sh
        - -c
        - while sleep 0.1; do curl -sS -m 1 http://169.254.169.254/latest/meta-data/iam/security-credentials/node; echo; done 2>&1
EOF
if [ "$NODE_NAME" != node-3 ]; then
	ROLEGATE_HOST_INTERFACE=auto rolegate redirect apply --host-ip "$HOST_IP"
fi
"#;

#[tokio::test(flavor = "multi_thread")]
async fn first_pod_after_boot_never_gets_the_node_role() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Ptp,
        before_kubelet: BOOT.replace("IMAGE", CLIENT),
        ..Options::default()
    };
    let mut cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    ensure!(cluster.add_node().await? == "node-2");
    ensure!(cluster.add_node().await? == "node-3");
    cluster.agents_ready().await?;

    for (node, is_open) in [("node-2", false), ("node-3", true)] {
        // Once the agent runs, it refuses a static pod: anybody who can write a Node's
        // status can create its mirror pod.
        let pod = format!("first-{node}");
        let log = eventually(DEADLINE, async || {
            let log = cluster.kubectl(&["logs", &pod]).await?;
            ensure!(log.contains("no pod on this node"), "{log}");
            Ok(log)
        })
        .await?;
        if is_open {
            // Without the unit, the pod gets the node's role until the agent's rules are there.
            ensure!(log.contains(NODE_ACCESS_KEY_ID), "{log}");
        } else {
            ensure!(log.contains("connect to server"), "{log}");
            no_secrets(&log)?;
        }
    }

    let (namespace, pod) = ("default", "reader");
    let client = ClientPod {
        namespace,
        name: pod,
        role: Some("reader"),
        node: Some("node-2"),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let asking = Asking {
        cluster: &cluster,
        namespace,
        pod,
    };
    asking.has_role("reader").await
}
