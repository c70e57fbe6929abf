//! Services of a node that restart while its pods send requests.

use anyhow::ensure;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::{ClientPod, Cni, Options};

use crate::ask::{Asking, CREDENTIALS};
use crate::update::{ASK, none_failed};

const NAMESPACE: &str = "default";

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_containerd_and_kubelet_restart() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Bridge,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    // `kubectl exec` ends with both services, so the pod sends requests by itself.
    let asks = ASK.replace("$0", &format!("{CREDENTIALS}reader"));
    let asks = format!("(\n{asks}\n) >/tmp/answers\n>/tmp/done\nwhile :; do sleep 1; done");
    let client = ClientPod {
        namespace: NAMESPACE,
        name: "asking",
        role: Some("reader"),
        script: Some(&asks),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    for service in ["containerd", "kubelet"] {
        cluster.node("node-1")?.restart(service).await?;
        // The service works again once a new pod runs, and the agent finds this pod.
        let name = format!("after-{service}");
        let client = ClientPod {
            namespace: NAMESPACE,
            name: &name,
            role: Some("writer"),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
        let after = Asking {
            cluster: &cluster,
            namespace: NAMESPACE,
            pod: &name,
        };
        after.has_role("writer").await?;
    }
    let asking = Asking {
        cluster: &cluster,
        namespace: NAMESPACE,
        pod: "asking",
    };
    let stop = ">/tmp/stop; until [ -e /tmp/done ]; do sleep 0.1; done; cat /tmp/answers";
    none_failed(&asking.run(&["sh", "-c", stop]).await?)?;
    for pod in ["pods", "pods -n rolegate-system"] {
        let words: Vec<&str> = pod.split(' ').collect();
        let pods = cluster.get(&words).await?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            ensure!(*restarts == 0, "{pod}");
        }
    }
    Ok(())
}
