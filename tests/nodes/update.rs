//! A new version of the agent is rolled out while pods continuously send requests.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{ClientPod, Cni};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, CREDENTIALS, DEADLINE};

/// Sends requests without a pause until /tmp/stop exists; prints one line for each failure, then
/// the number of requests.
pub(crate) const ASK: &str = r#"n=0
while [ ! -e /tmp/stop ]; do
	n=$((n + 1))
	curl -sS -m 20 --fail "$0" | grep -q '"AccessKeyId"' || echo "failed: $n"
done 2>&1
echo "asked: $n""#;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_agents_are_updated() -> anyhow::Result<()> {
    let cluster = TestCluster::shared(Cni::Bridge).await?;
    let namespace = "update";
    cluster.create_namespace(namespace).await?;
    let nodes = ["node-1", "node-2"];
    let asking = nodes.map(|pod| Asking {
        cluster,
        namespace,
        pod,
    });
    for one in asking {
        let client = ClientPod {
            namespace,
            name: one.pod,
            role: Some("reader"),
            node: Some(one.pod),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
        one.has_role("reader").await?;
    }
    // A restart before the agents of the previous rollout have been ready for `minReadySeconds` can
    // start and never complete: the DaemonSet controller checks too early and not again.
    cluster
        .rolled_out("rolegate-system", "daemonset/rolegate-agent")
        .await?;
    let before = agents(cluster).await?;
    let [first, second] = asking.map(|one| ask_until_stopped(one, "reader"));
    let update = async {
        let restart = ["rollout", "restart", "daemonset/rolegate-agent"];
        cluster
            .kubectl(&[&restart[..], &["-n", "rolegate-system"]].concat())
            .await?;
        let updated = cluster.rolled_out("rolegate-system", "daemonset/rolegate-agent");
        // The rollout is complete before the last old agent has exited.
        let left = async || {
            let now = agents(cluster).await?;
            ensure!(before.is_disjoint(&now), "{before:?} {now:?}");
            Ok(())
        };
        let updated = match updated.await {
            Ok(()) => eventually(DEADLINE, left).await,
            error => error,
        };
        for one in asking {
            one.run(&["sh", "-c", ">/tmp/stop"]).await?;
        }
        updated
    };
    let (first, second, updated) = tokio::join!(first, second, update);
    updated?;
    for answers in [first?, second?] {
        none_failed(&answers)?;
    }
    Ok(())
}

/// Fails if a request of [`ask_until_stopped`] failed, or if there were few.
pub(crate) fn none_failed(answers: &str) -> anyhow::Result<()> {
    ensure!(!answers.contains("failed"), "{answers}");
    let asked = answers.trim().strip_prefix("asked: ");
    let asked: usize = asked.context("no count")?.parse()?;
    ensure!(asked > 50, "only {asked} requests");
    Ok(())
}

/// Sends requests from the pod until it has a file /tmp/stop.
pub(crate) async fn ask_until_stopped(asking: Asking<'_>, role: &str) -> anyhow::Result<String> {
    asking
        .run(&["sh", "-c", ASK, &format!("{CREDENTIALS}{role}")])
        .await
}

/// Returns the UIDs of the agents' pods.
async fn agents(cluster: &TestCluster) -> anyhow::Result<BTreeSet<String>> {
    let selector = "app.kubernetes.io/name=rolegate-agent";
    let pods = ["pods", "-n", "rolegate-system", "-l", selector];
    let pods = cluster.get(&pods).await?;
    let pods = pods["items"].as_array().context("no list")?;
    let uid = |pod: &serde_json::Value| pod["metadata"]["uid"].as_str().map(str::to_owned);
    Ok(pods.iter().filter_map(uid).collect())
}
