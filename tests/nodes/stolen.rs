//! A stolen node: the attacker has its kubelet's credential and the tokens of its pods, and gets no
//! role of another node's pods. `tests/e2e/broker/stolen.rs` has the protocol's cases; here the
//! credential, the tokens and NodeRestriction are the real ones.

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{ClientPod, Cni, Options, Ran};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, CREDENTIALS, DEADLINE};

const NAMESPACE: &str = "default";
const SYSTEM: &str = "rolegate-system";

/// Two nodes with brokers, and a pod on each: `own` on the stolen one, with the role reader, and
/// `other`, with the role writer. Their grants give them these roles only.
async fn cluster() -> anyhow::Result<TestCluster> {
    let options = Options {
        cni: Cni::Ptp,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    let chart = cluster.chart();
    let install = "install rolegate CHART -n rolegate-system --create-namespace --wait --timeout 4m \
        --set image.repository=ghcr.io/rolegate/rolegate --set broker.enabled=true \
        --set broker.hostNetwork=true --set config.layers.grants=enforce";
    let install: Vec<&str> = install
        .split_whitespace()
        .map(|word| if word == "CHART" { &*chart } else { word })
        .collect();
    cluster.helm(&install).await?;
    for (name, role, node) in [("own", "reader", "node-1"), ("other", "writer", "node-2")] {
        cluster.kubectl(&["create", "serviceaccount", name]).await?;
        let grant = format!(
            "apiVersion: rolegate.dev/v1alpha1\nkind: RoleGrant\nmetadata: {{ name: {name} }}\n\
             spec: {{ roles: [{role}], subjects: [{{ namespaces: [{NAMESPACE}], serviceAccounts: [{name}] }}] }}\n"
        );
        cluster.apply(&grant).await?;
        let client = ClientPod {
            namespace: NAMESPACE,
            name,
            role: Some(role),
            service_account: Some(name),
            node: Some(node),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
        asking(&cluster, name).has_role(role).await?;
    }
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_node_gets_no_role_of_another_nodes_pods() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    kubelet_writes_only_its_own_pods(&cluster).await?;
    tokens_open_no_stream_of_another_node(&cluster).await?;
    asking(&cluster, "own").has_role("reader").await?;
    asking(&cluster, "other").has_role("writer").await
}

async fn kubelet_writes_only_its_own_pods(cluster: &TestCluster) -> anyhow::Result<()> {
    let agent = agent(cluster, "node-2").await?;
    let uid = cluster.get(&["pod", &agent, "-n", SYSTEM]).await?;
    let uid = uid["metadata"]["uid"].as_str().context("no UID")?;
    let token = format!(
        "create token rolegate-agent -n {SYSTEM} --audience=rolegate --bound-object-kind=Pod \
         --bound-object-name={agent} --bound-object-uid={uid}"
    );
    for refused in [
        &*token,
        // A token that is bound to nothing, and what only the broker and the controller may read.
        "create token rolegate-agent -n rolegate-system --audience=rolegate",
        "get secrets -n rolegate-system",
        "get secret rolegate-broker-tls -n rolegate-system",
        "get rolegrants.rolegate.dev",
        "annotate pod own iam.amazonaws.com/role=writer --overwrite",
        "create serviceaccount mine",
    ] {
        let ran = kubelet(cluster, refused).await?;
        ensure!(!ran.status.success(), "{refused}: {}", ran.stdout);
        ensure!(ran.stderr.contains("orbidden"), "{refused}: {}", ran.stderr);
    }

    ensure!(annotate(cluster, "other", "reader").await? == 403);

    // The kubelet may write the annotations of its own pods with their status. The grants decide.
    ensure!(annotate(cluster, "own", "writer").await? == 200);
    let own = asking(cluster, "own");
    eventually(DEADLINE, async || {
        let (status, body) = own.get(&format!("{CREDENTIALS}writer")).await?;
        ensure!(status == 403, "{status} {body}");
        Ok(())
    })
    .await?;
    ensure!(annotate(cluster, "own", "reader").await? == 200);
    own.has_role("reader").await
}

/// Writes the role of a pod with its status, as node-1's kubelet, and returns the API server's
/// status. `kubectl` would read the status first, which kubelets may not.
async fn annotate(cluster: &TestCluster, pod: &str, role: &str) -> anyhow::Result<u16> {
    let node = cluster.node("node-1")?;
    let script = format!(
        r#"view() {{ kubectl --kubeconfig={} config view --raw -o "jsonpath={{$1}}"; }}
curl -sS -o /dev/null -w '%{{http_code}}' -X PATCH \
	--cacert "$(view .clusters[0].cluster.certificate-authority)" \
	--cert "$(view .users[0].user.client-certificate)" \
	--key "$(view .users[0].user.client-key)" \
	-H 'Content-Type: application/merge-patch+json' \
	-d '{{"metadata":{{"annotations":{{"iam.amazonaws.com/role":"{role}"}}}}}}' \
	"$(view .clusters[0].cluster.server)/api/v1/namespaces/{NAMESPACE}/pods/{pod}/status""#,
        node.kubelet_credential().display()
    );
    Ok(node.shell(&script).await?.ok()?.parse()?)
}

/// Connects to the brokers with each token of the node, for the other node.
async fn tokens_open_no_stream_of_another_node(cluster: &TestCluster) -> anyhow::Result<()> {
    let script = r#"
# The resolver of a pod.
export LOCALDOMAIN=cluster.local RES_OPTIONS=ndots:5
volumes=/var/lib/kubelet/pods/*/volumes
ca=$(echo $volumes/kubernetes.io~configmap/broker-ca/ca.crt)
tried=0
for token in $volumes/kubernetes.io~projected/*/token; do
	timeout 60 rolegate agent --redirect=none --node=node-2 --host-ip=192.168.50.11 \
		--app-port=8999 --metrics-address=127.0.0.1:8998 --runtime-dir= \
		--broker=https://rolegate-broker.rolegate-system.svc:9443 \
		--broker-token="$token" --broker-ca="$ca" >/run/agent.log 2>&1 &
	until grep -q 'rejected this agent' /run/agent.log; do
		kill -0 $! || { cat /run/agent.log; exit 1; }
		sleep 0.1
	done
	kill $! && wait $! || true
	tried=$((tried + 1))
done
echo $tried"#;
    let tried = cluster.node("node-1")?.shell(script).await?.ok()?;
    // At least the agent's own and that of `own`.
    ensure!(tried.trim().parse::<usize>()? >= 2, "{tried}");
    let mut refused = String::new();
    for node in cluster.nodes() {
        let metrics = node.shell("curl -sS 127.0.0.1:9092/metrics").await?.ok()?;
        refused.push_str(&metrics);
    }
    for reason in ["node", "audience"] {
        let series = format!(r#"rolegate_broker_refused_total{{reason="{reason}"}}"#);
        let counted = |line: &str| line.starts_with(&series) && !line.ends_with(" 0");
        ensure!(refused.lines().any(counted), "no {series}");
    }
    Ok(())
}

/// Runs kubectl with the credential of node-1's kubelet.
async fn kubelet(cluster: &TestCluster, arguments: &str) -> anyhow::Result<Ran> {
    let node = cluster.node("node-1")?;
    let credential = node.kubelet_credential();
    let command = format!("kubectl --kubeconfig={} {arguments}", credential.display());
    node.shell(&command).await
}

/// Returns the name of a node's agent.
async fn agent(cluster: &TestCluster, node: &str) -> anyhow::Result<String> {
    let on_node = format!("--field-selector=spec.nodeName={node}");
    let selector = "--selector=app.kubernetes.io/name=rolegate-agent";
    let name = [
        "get", "pods", "-n", SYSTEM, &on_node, selector, "-o", "name",
    ];
    let name = cluster.kubectl(&name).await?;
    let name = name.trim().strip_prefix("pod/");
    Ok(name.context("no agent")?.to_owned())
}

fn asking<'a>(cluster: &'a TestCluster, pod: &'a str) -> Asking<'a> {
    Asking {
        cluster,
        namespace: NAMESPACE,
        pod,
    }
}
