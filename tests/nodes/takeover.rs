//! A node on which kube2iam serves the pods is taken over by rolegate, as docs/from-kube2iam.md
//! describes it.

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{CLIENT, ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::json;

use crate::ask::{Asking, CREDENTIALS, DEADLINE};

const NAMESPACE: &str = "default";
/// The rule that kube2iam adds with `--iptables`.
const RULE: &str = "iptables -w -t nat -A PREROUTING -p tcp -d 169.254.169.254/32 --dport 80 \
    -j DNAT --to-destination \"$HOST_IP\":8181 -i cni0\n";
/// Serves on kube2iam's port in its place.
const OTHER: &str = r#"
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"AccessKeyId": "KUBE2IAM"}')
ThreadingHTTPServer(("", 8181), Handler).serve_forever()
"#;
/// Prints which program answered each request: `other`, `rolegate`, or the status alone.
const ASK: &str = r#"while [ ! -e /tmp/stop ]; do
	status=$(curl -s -m 20 -o /tmp/body -w '%{http_code}' URL)
	if grep -q KUBE2IAM /tmp/body; then echo other
	elif grep -q '"AccessKeyId"' /tmp/body; then echo rolegate
	else echo "$status $(cat /tmp/body)"; fi
	: >/tmp/body
done >/tmp/answers
>/tmp/done
while :; do sleep 1; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_kube2iam_is_taken_over_while_pods_ask() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Bridge,
        before_kubelet: RULE.to_owned(),
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.apply(&other().to_string()).await?;
    cluster
        .wait(NAMESPACE, "pod/kube2iam", "condition=Ready")
        .await?;
    let script = ASK.replace("URL", &format!("{CREDENTIALS}reader"));
    let client = ClientPod {
        namespace: NAMESPACE,
        name: "asking",
        role: Some("reader"),
        script: Some(&script),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let asking = Asking {
        cluster: &cluster,
        namespace: NAMESPACE,
        pod: "asking",
    };
    eventually(DEADLINE, async || {
        let last = asking.run(&["sh", "-c", "grep -c other /tmp/answers"]);
        ensure!(last.await?.trim().parse::<usize>()? > 20);
        Ok(())
    })
    .await?;

    // Both run for a moment, so the agent has another port. Its rules come before kube2iam's.
    let agents = cluster.manifest("rolegate-agent.yaml")?;
    let agents = agents.replace(
        "- --redirect=auto",
        "- --redirect=auto\n            - --app-port=8191",
    );
    cluster.apply(&cluster.manifest("namespace.yaml")?).await?;
    cluster.apply(&agents).await?;
    cluster.agents_ready().await?;
    asking.has_role("reader").await?;

    // kube2iam's rule stays, and leads nowhere once kube2iam has left.
    cluster
        .kubectl(&["delete", "pod", "kube2iam", "--now"])
        .await?;
    asking.has_role("reader").await?;
    let rules = "iptables -w -t nat -S PREROUTING";
    let rules = cluster.node("node-1")?.shell(rules).await?.ok()?;
    ensure!(rules.contains(":8181"), "{rules}");
    let stop = ">/tmp/stop; until [ -e /tmp/done ]; do sleep 0.1; done; cat /tmp/answers";
    let answers = asking.run(&["sh", "-c", stop]).await?;
    in_order(&answers)
}

/// Fails unless kube2iam answered first and then rolegate, at most with requests in between that
/// SDKs send again.
fn in_order(answers: &str) -> anyhow::Result<()> {
    let mut lines: Vec<&str> = answers.lines().collect();
    lines.dedup();
    let (first, last) = (lines.first(), lines.last());
    ensure!(first == Some(&"other"), "{lines:?}");
    ensure!(last == Some(&"rolegate"), "{lines:?}");
    let start = lines.iter().position(|line| *line != "other");
    let between = start.and_then(|start| lines.get(start..lines.len() - 1));
    for line in between.context("no answers")? {
        ensure!(line.starts_with("503 "), "{lines:?}");
    }
    Ok(())
}

/// A pod on the host's network that serves on port 8181.
fn other() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "kube2iam", "namespace": NAMESPACE },
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "kube2iam", "image": CLIENT, "command": ["python3", "-c", OTHER],
                "readinessProbe": { "tcpSocket": { "port": 8181 }, "periodSeconds": 1 },
            }],
        },
    })
}
