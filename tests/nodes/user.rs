//! The tools and rights of a cluster's user that the documentation assumes.

use anyhow::ensure;
use rolegate_testkit::TestCluster;
use rolegate_testkit::nodes::{ClientPod, Cni};

use crate::ask::Asking;

/// Keeps a tunnel open in the background.
const SCRIPT: &str = r#"
rolegate --version
kubectl -n rolegate-system port-forward daemonset/rolegate-agent 19090:9090 >/dev/null &
until curl -sf 127.0.0.1:19090/healthz; do sleep 0.2; done
kubectl -n rolegate-system logs daemonset/rolegate-agent | grep -o 'metadata redirect is installed'
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_script_has_the_tools_of_a_user_and_ends_with_all_it_started() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let output = cluster.shell()?.run(SCRIPT).await?.ok()?;
    ensure!(output.starts_with("rolegate "), "{output}");
    ensure!(output.contains("redirect is installed"), "{output}");
    let tunnel = cluster.shell()?.run("curl -s 127.0.0.1:19090/healthz");
    ensure!(!tunnel.await?.status.success(), "the tunnel is still there");
    let failing = cluster.shell()?.run("false | cat\necho on").await?;
    ensure!(!failing.status.success() && failing.stdout.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_find_services_by_name() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let (namespace, pod) = ("names", "client");
    cluster.create_namespace(namespace).await?;
    let client = ClientPod {
        namespace,
        name: pod,
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let asking = Asking {
        cluster,
        namespace,
        pod,
    };
    let look_up = "import socket, sys; print(socket.gethostbyname(sys.argv[1]), end='')";
    let name = ["python3", "-c", look_up, "kubernetes.default.svc"];
    ensure!(asking.run(&name).await? == "10.96.0.1");
    let unknown = ["python3", "-c", look_up, "unknown.default.svc"];
    let unknown = cluster.exec(namespace, pod, &unknown).await?;
    ensure!(unknown.stderr.contains("gaierror"), "{}", unknown.stderr);
    Ok(())
}
