//! Two brokers, of which one stops: every pod gets its credentials without interruption, whether it
//! ran before or has just started.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_testkit::{Rolegate, eventually};

use super::harness::{BrokerHarness, Node};
use crate::ask::{self, CREDENTIALS};
use crate::asking::{Asker, Asking};
use crate::fixture::{DEADLINE, Pod, credentials};

const FLAGS: [&str; 1] = ["--layer=namespace=off"];
/// Timeout of a pod's first request, longer than a failover takes on a busy machine.
const PATIENCE: &str = "--wait=10s";

const STREAMS: [&str; 2] = [
    r#"rolegate_broker_streams{use="serving"}"#,
    r#"rolegate_broker_streams{use="warm"}"#,
];

/// Two nodes and their surroundings.
struct Fixture {
    harness: BrokerHarness,
    nodes: [Node; 2],
    /// The last octet of the latest pod's address.
    last: Cell<u8>,
}

impl Fixture {
    /// Returns the numbers of agents' streams to a broker: active and standby.
    fn streams(&self, broker: u8) -> anyhow::Result<(u64, u64)> {
        let [serving, warm] = STREAMS.map(|series| self.harness.metric(broker, series));
        Ok((serving?, warm?))
    }

    /// Waits until each agent has a stream to each broker; returns a broker with an active stream.
    async fn settled(&self) -> anyhow::Result<u8> {
        let nodes = u64::try_from(self.nodes.len())?;
        eventually(DEADLINE, async || {
            let ((first, warm), other) = (self.streams(1)?, self.streams(2)?);
            let whole = first + warm == nodes && other == (warm, first);
            ensure!(whole, "streams are {first} and {warm}, {other:?}");
            Ok(if first > 0 { 1 } else { 2 })
        })
        .await
    }

    /// Starts a pod on a node, with a role that no pod had before, and sends one request.
    async fn starts(&self, node: &Node) -> anyhow::Result<(Arc<Pod>, String)> {
        let last = self.last.get() + 1;
        self.last.set(last);
        let (harness, pod) = (&self.harness, Arc::new(self.harness.pod(node, last)?));
        let role = format!("role-{last}");
        let object = harness.object(node, "a", &format!("pod-{last}"), &pod);
        harness.cluster.run_pod(&object.role(&role)).await?;
        let (path, asking) = (format!("{CREDENTIALS}{role}"), pod.clone());
        let first = tokio::task::spawn_blocking(move || ask::get(&asking, &path));
        let reply = first.await??;
        ensure!(reply.status == 200, "the first request of a pod: {reply:?}");
        Ok((pod, role))
    }

    /// Starts pods on both nodes as long as `work` runs, and once more after it.
    async fn starting<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let done = Cell::new(false);
        let work = async {
            let result = work.await;
            done.set(true);
            result
        };
        let pods = async {
            while !done.get() {
                for node in &self.nodes {
                    self.starts(node).await?;
                }
            }
            Ok(())
        };
        Ok(tokio::try_join!(work, pods)?.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_brokers_go_and_come() -> anyhow::Result<()> {
    let harness = BrokerHarness::new("failover", 2).await?;
    let namespace = harness.named("a");
    harness.cluster.create_namespace(&namespace, &[]).await?;
    let nodes = [harness.node(1).await?, harness.node(2).await?];
    let pods = [harness.pod(&nodes[0], 5)?, harness.pod(&nodes[1], 6)?];
    for ((node, pod), role) in nodes.iter().zip(&pods).zip(["reader", "writer"]) {
        let object = harness.object(node, "a", role, pod).role(role);
        harness.cluster.run_pod(&object).await?;
    }
    let first = harness.broker(1, &FLAGS).await?;
    let second = harness.broker(2, &FLAGS).await?;
    let mut agents = Vec::new();
    for node in &nodes {
        let mut agent = harness.unready_agent(node, &[PATIENCE])?;
        node.ready(&mut agent).await?;
        agents.push(agent);
    }
    harness.served(&pods[0], "reader").await?;
    harness.served(&pods[1], "writer").await?;

    let (mut brokers, last) = ([first, second], Cell::new(10));
    let fixture = Fixture {
        harness,
        nodes,
        last,
    };
    let askers: [Asker<'_>; 2] = [(&pods[0], "reader"), (&pods[1], "writer")];
    Asking::all_during(&askers, &[], async |asking| {
        fail_over(&fixture, asking, &mut brokers).await?;
        // One more refresh without a change of brokers. It is of a session with the short lifetime,
        // since the first sessions have a longer one and are still served.
        let (pod, role) = fixture.starts(&fixture.nodes[0]).await?;
        let before = credentials(&pod, &role)?;
        eventually(DEADLINE, async || {
            let now = credentials(&pod, &role)?;
            ensure!(now != before, "the session of before");
            Ok(())
        })
        .await?;
        asking.more(20).await
    })?;
    for agent in &agents {
        let log = agent.log();
        ensure!(!log.contains("ERROR"), "{log}");
    }
    Ok(())
}

async fn fail_over(
    fixture: &Fixture,
    asking: &Asking,
    brokers: &mut [Rolegate; 2],
) -> anyhow::Result<()> {
    // A broker is killed: its agents switch to the other one at once.
    let serving = fixture.settled().await?;
    let killed = brokers.get_mut(usize::from(serving) - 1);
    let killed = killed.context("a broker")?;
    fixture
        .starting(async {
            asking.more(20).await?;
            killed.kill();
            asking.more(50).await
        })
        .await?;
    assert_eq!(fixture.streams(3 - serving)?.0, 2);
    // All brokers are killed: existing sessions are still served.
    brokers.iter_mut().for_each(|broker| broker.kill());
    asking.more(50).await?;
    // From now on a new session is refreshed after 8 s or slightly more.
    let harness = &fixture.harness;
    harness.sts.set_life(Duration::from_secs(20));
    *brokers = tokio::try_join!(harness.broker(1, &FLAGS), harness.broker(2, &FLAGS))?.into();

    // A rolling update: one broker after another, each when the previous one has a stream.
    for (number, broker) in (1..).zip(brokers.iter_mut()) {
        fixture.settled().await?;
        fixture
            .starting(async {
                ensure!(broker.stop().await?.success(), "{}", broker.log());
                asking.more(50).await?;
                *broker = harness.broker(number, &FLAGS).await?;
                Ok(())
            })
            .await?;
    }
    asking.more(50).await
}
