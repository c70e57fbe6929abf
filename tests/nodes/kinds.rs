//! Kinds of containers and pods: init, sidecar, ephemeral, crash-looping, and on the host's network.

use anyhow::ensure;
use rolegate_devkit::NODE_SECRET_MARKER;
use rolegate_testkit::nodes::{CLIENT, Cni};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::{Value, json};

use crate::ask::{Asking, CREDENTIALS, DEADLINE};

const NAMESPACE: &str = "kinds";
/// Prints the identity according to STS, as the container's first act. The machine may be busy, so
/// the SDK waits longer for the metadata endpoint than by default, but sends one request alone.
const IDENTITY: &str = r#"export AWS_METADATA_SERVICE_TIMEOUT=30 AWS_METADATA_SERVICE_NUM_ATTEMPTS=1
python3 -c "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])""#;
const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
const SESSION: &str = "arn:aws:sts::123456789012:assumed-role/reader/";

#[tokio::test(flavor = "multi_thread")]
async fn each_container_of_a_pod_gets_its_role() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    cluster.create_namespace(NAMESPACE).await?;
    let asks_and_waits = format!("{IDENTITY}\n{WAIT}");
    let mut sidecar = container("sidecar", &asks_and_waits);
    sidecar["restartPolicy"] = json!("Always");
    let spec = json!({
        "initContainers": [container("init", IDENTITY), sidecar],
        "containers": [container("main", &asks_and_waits)],
        // A container that fails is not tried again.
        "restartPolicy": "Never",
    });
    cluster.apply(&pod("containers", spec).to_string()).await?;
    let crashing = json!({ "containers": [container("main", &format!("{IDENTITY}\nexit 1"))] });
    cluster
        .apply(&pod("crashing", crashing).to_string())
        .await?;
    cluster
        .wait(NAMESPACE, "pod/containers", "condition=Ready")
        .await?;
    cluster
        .kubectl(&[
            "debug",
            "pod/containers",
            "--namespace=kinds",
            "--container=debugger",
            "--image-pull-policy=Never",
            "--profile=general",
            &format!("--image={CLIENT}"),
            "--",
            "sh",
            "-c",
            IDENTITY,
        ])
        .await?;
    for container in ["init", "sidecar", "main", "debugger"] {
        printed(cluster, "containers", &[&format!("-c={container}")], 1).await?;
    }

    // `--previous` is the first start once the container has been restarted.
    eventually(DEADLINE, async || {
        let pod = cluster.get(&["pod", "crashing", "-n", NAMESPACE]).await?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts.as_u64() >= Some(1), "{restarts} restarts");
        Ok(())
    })
    .await?;
    for previous in ["--previous=true", "--previous=false"] {
        printed(cluster, "crashing", &[previous], 1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_network_pod_reaches_the_node_role_as_documented() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let namespace = "kinds-host";
    cluster.create_namespace(namespace).await?;
    let spec = json!({ "hostNetwork": true, "containers": [container("main", WAIT)] });
    let mut object = pod("host", spec);
    object["metadata"]["namespace"] = json!(namespace);
    cluster.apply(&object.to_string()).await?;
    cluster
        .wait(namespace, "pod/host", "condition=Ready")
        .await?;
    let asking = Asking {
        cluster,
        namespace,
        pod: "host",
    };
    let (status, body) = asking.get(&format!("{CREDENTIALS}node")).await?;
    ensure!(status == 200 && body.contains(NODE_SECRET_MARKER), "{body}");
    // Its annotation gives it no role, since its address is the node's.
    let (status, body) = asking.get(&format!("{CREDENTIALS}reader")).await?;
    ensure!(status != 200, "{body}");
    Ok(())
}

/// Waits until the log of a container has this number of lines, and fails if one is not a session
/// of the pod's role.
async fn printed(
    cluster: &TestCluster,
    pod: &str,
    which: &[&str],
    lines: usize,
) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let logs = [&["logs", pod, "-n", NAMESPACE][..], which].concat();
        let log = cluster.kubectl(&logs).await?;
        let sessions = log.lines().filter(|line| line.starts_with(SESSION));
        ensure!(sessions.count() == lines, "{pod} {which:?}: {log}");
        ensure!(log.lines().count() == lines, "{pod} {which:?}: {log}");
        Ok(())
    })
    .await
}

fn container(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": CLIENT, "command": ["sh", "-c", script] })
}

fn pod(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE, "name": name,
            "annotations": { "iam.amazonaws.com/role": "reader" },
        },
        "spec": spec,
    })
}
