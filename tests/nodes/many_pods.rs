//! As many pods as a kubelet runs by default.

use std::fs;

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::{CLIENT, Cni, Options};
use rolegate_testkit::{TestCluster, eventually};
use serde_json::json;

use crate::ask::{CREDENTIALS, DEADLINE};

/// The kubelet's default is 110 pods, one of which is the agent.
const PODS: usize = 109;
/// Time for all of them to start, on a busy machine.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(900);
/// The number of roles, each with a Deployment.
const ROLES: usize = 10;
/// The memory limit of the shipped manifest, in KiB.
const MEMORY: u64 = 128 * 1024;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a hundred pods, which takes minutes: make test-slow"]
async fn each_pod_of_a_full_node_gets_its_role() -> anyhow::Result<()> {
    let options = Options {
        nodes: 1,
        cni: Cni::Bridge,
        ..Options::default()
    };
    let cluster = TestCluster::start(options).await?;
    cluster.install_agents().await?;
    let agent = cluster.node("node-1")?.process("rolegate agent")?;
    report("without pods", agent)?;
    for number in 0..ROLES {
        cluster.apply(&deployment(number).to_string()).await?;
    }
    eventually(LIMIT, async || {
        let ready = "jsonpath={range .items[*]}{.status.readyReplicas}{\"\\n\"}{end}";
        let ready = cluster
            .kubectl(&["get", "deployments", "-o", ready])
            .await?;
        let ready: usize = ready.lines().flat_map(str::parse::<usize>).sum();
        ensure!(ready == PODS, "{ready} pods are ready");
        Ok(())
    })
    .await?;
    let mut repeated = 0;
    for number in 0..ROLES {
        let selector = format!("--selector=role=role-{number}");
        let logs = ["logs", &selector, "--tail=-1", "--max-log-requests=200"];
        let role = format!("role-{number} after ");
        let requests = eventually(DEADLINE, async || {
            let logs = cluster.kubectl(&logs).await?;
            let counts = logs.lines().map(|it| it.strip_prefix(&role)?.parse().ok());
            let counts: Option<Vec<usize>> = counts.collect();
            let counts = counts.with_context(|| logs.clone())?;
            ensure!(counts.len() == replicas(number), "{logs}");
            Ok(counts)
        })
        .await?;
        repeated += requests.iter().filter(|count| **count > 1).count();
    }
    // While a hundred pods start, the kubelet reports some addresses late.
    println!("{repeated} of {PODS} pods had to repeat their first request");
    let rss = report("with 109 pods", agent)?;
    ensure!(rss < MEMORY, "{rss} KiB");
    Ok(())
}

/// Prints the agent's memory, and returns the resident set in KiB.
fn report(when: &str, agent: rustix::process::Pid) -> anyhow::Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", agent.as_raw_nonzero());
    let rollup = fs::read_to_string(&path).context(path)?;
    let read = |key: &str| -> anyhow::Result<u64> {
        let mut lines = rollup.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = value.with_context(|| format!("no {key}"))?;
        Ok(value.trim().trim_end_matches(" kB").parse()?)
    };
    let (rss, anonymous) = (read("Rss")?, read("Anonymous")?);
    println!("agent {when}: Rss {rss} KiB, Anonymous {anonymous} KiB");
    Ok(rss)
}

fn replicas(number: usize) -> usize {
    PODS / ROLES + usize::from(number < PODS % ROLES)
}

fn deployment(number: usize) -> serde_json::Value {
    let name = format!("role-{number}");
    let first = format!(
        r#"n=1
until curl -s -m 60 {CREDENTIALS}{name} | grep -q '"AccessKeyId"'; do n=$((n + 1)); done
echo "$(curl -s -m 60 {CREDENTIALS}) after $n"
trap 'exit 0' TERM
while :; do sleep 3600 & wait; done"#
    );
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas(number),
            "selector": { "matchLabels": { "role": name } },
            "template": {
                "metadata": {
                    "labels": { "role": name },
                    "annotations": { "iam.amazonaws.com/role": name },
                },
                "spec": { "containers": [{
                    "name": "client", "image": CLIENT, "command": ["sh", "-c", first],
                }] },
            },
        },
    })
}
