//! Addresses that a node gives to one pod after another.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{ClientPod, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};

use crate::ask::{Asking, DEADLINE};

/// Requests the role of the address's former owner as the pod's first act, several times, and then
/// the pod's own list of roles.
const ASK: &str = r#"url=http://169.254.169.254/latest/meta-data/iam/security-credentials
for i in 1 2 3 4 5; do
	curl -s -m 5 -o /dev/null -w "reader:%{http_code}\n" $url/reader
done
echo "list:$(curl -s -m 5 $url/)"
trap 'exit 0' TERM
while :; do sleep 3600 & wait; done"#;
/// The number of pods after the first: more than a /29 range has addresses.
const LATER: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn address_reuse_gets_no_foreign_role() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Bridge,
        pod_prefix: 29,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    let namespace = "default";
    let client = ClientPod {
        namespace,
        name: "reader",
        role: Some("reader"),
        ..ClientPod::default()
    };
    cluster.run_client(&client).await?;
    let later: Vec<_> = (0..LATER).map(|number| format!("later-{number}")).collect();
    let asking = |pod| Asking {
        cluster: &cluster,
        namespace,
        pod,
    };
    asking("reader").has_role("reader").await?;
    let first = address(&cluster, "reader").await?;
    cluster.kubectl(&["delete", "pod", "reader"]).await?;

    let mut seen = BTreeSet::new();
    for (number, name) in later.iter().enumerate() {
        let role = (number % 2 == 0).then_some("writer");
        let client = ClientPod {
            namespace,
            name,
            role,
            script: Some(ASK),
            ..ClientPod::default()
        };
        cluster.run_client(&client).await?;
        seen.insert(address(&cluster, name).await?);
        let log = eventually(DEADLINE, async || {
            let log = cluster.kubectl(&["logs", name]).await?;
            ensure!(log.contains("list:"), "{log}");
            Ok(log)
        })
        .await?;
        ensure!(!log.contains("reader:200"), "{name}: {log}");
        ensure!(!log.contains("list:reader"), "{name}: {log}");
        match role {
            Some(role) => asking(name).has_role(role).await?,
            None => asking(name).gets_nothing("reader").await?,
        }
        cluster.kubectl(&["delete", "pod", name]).await?;
    }
    ensure!(
        seen.contains(&first),
        "{first} was not given again: {seen:?}"
    );
    Ok(())
}

async fn address(cluster: &TestCluster, pod: &str) -> anyhow::Result<String> {
    let pod = cluster.get(&["pod", pod]).await?;
    let address = pod["status"]["podIP"].as_str();
    Ok(address.context("the pod has no address")?.to_owned())
}
