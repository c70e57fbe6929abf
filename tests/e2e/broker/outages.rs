//! The brokers' dependencies fail and recover. Pods of both nodes send requests all the time, and
//! no request fails. Changes made during the outage take effect afterwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::LocalBoxFuture;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::ClientTls;
use rolegate_testkit::{Cluster, Moto, Rolegate, eventually};
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

use super::harness::{BrokerHarness, HOST, Node, PORT, install};
use crate::ask::{self, CREDENTIALS};
use crate::asking::Asking;
use crate::fixture::{DEADLINE, Pod, credentials};
use crate::shim::Sts;

const FLAGS: [&str; 1] = ["--layer=namespace=off"];
/// Returns the number of calls to STS without a response.
const UNANSWERED: &str = r#"rolegate_sts_request_duration_seconds_count{outcome="temporary"}"#;

const SERVING: &str = r#"rolegate_broker_streams{use="serving"}"#;
const WARM: &str = r#"rolegate_broker_streams{use="warm"}"#;

/// Two nodes, each with an agent and a pod that has its role, and their brokers.
struct Fixture {
    harness: BrokerHarness,
    nodes: [Node; 2],
    pods: [Pod; 2],
    brokers: Vec<Rolegate>,
    _agents: [Rolegate; 2],
}

impl Fixture {
    /// Creates the harness with one broker or two, on the heap because it is large.
    fn new(harness: BrokerHarness, brokers: u8) -> LocalBoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(Self::start(harness, brokers))
    }

    async fn start(harness: BrokerHarness, count: u8) -> anyhow::Result<Self> {
        let namespace = harness.named("a");
        harness.cluster.create_namespace(&namespace, &[]).await?;
        let nodes = [harness.node(1).await?, harness.node(2).await?];
        let pods = [harness.pod(&nodes[0], 5)?, harness.pod(&nodes[1], 6)?];
        for ((node, pod), name) in nodes.iter().zip(&pods).zip(["reader", "writer"]) {
            let object = harness.object(node, "a", name, pod).role(name);
            harness.cluster.run_pod(&object).await?;
        }
        let mut brokers = Vec::new();
        for number in 1..=count {
            brokers.push(harness.broker(number, &FLAGS).await?);
        }
        let agents = [
            harness.agent(&nodes[0]).await?,
            harness.agent(&nodes[1]).await?,
        ];
        harness.served(&pods[0], "reader").await?;
        harness.served(&pods[1], "writer").await?;
        Ok(Self {
            harness,
            nodes,
            pods,
            brokers,
            _agents: agents,
        })
    }

    /// Runs `work` while the pods send requests.
    fn asking<T>(&self, work: impl AsyncFnOnce(&Asking) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let [first, second] = &self.pods;
        Asking::all_during(&[(first, "reader"), (second, "writer")], &[], work)
    }

    /// Creates a pod on a node.
    async fn appears(&self, node: &Node, last: u8) -> anyhow::Result<Pod> {
        let pod = self.harness.pod(node, last)?;
        let name = format!("new-{last}");
        let object = self.harness.object(node, "a", &name, &pod).role("fresh");
        self.harness.cluster.run_pod(&object).await?;
        Ok(pod)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_sts_is_away() -> anyhow::Result<()> {
    let (moto, next) = tokio::try_join!(Moto::start(), Moto::start())?;
    let sts = Sts::before(&moto).await?;
    // Sessions are refreshed after 12 s or slightly more.
    sts.set_life(Duration::from_secs(30));
    let cluster = super::harness::cluster().await?;
    let fixture = Fixture::new(
        BrokerHarness::with_sts(cluster, "sts-away", 10, sts).await?,
        1,
    )
    .await?;
    let harness = &fixture.harness;
    let before = credentials(&fixture.pods[0], "reader")?;
    fixture.asking(async |asking| {
        assert_eq!(harness.metric(1, UNANSWERED)?, 0);
        drop(moto);
        eventually(DEADLINE, async || {
            ensure!(harness.metric(1, UNANSWERED)? > 0, "nothing is refreshed");
            Ok(())
        })
        .await?;
        let new = fixture.appears(&fixture.nodes[1], 7).await?;
        eventually(DEADLINE, async || {
            let reply = ask::get(&new, &format!("{CREDENTIALS}fresh"))?;
            ensure!(
                reply.status == 503 && reply.body.contains("STS"),
                "{reply:?}"
            );
            Ok(())
        })
        .await?;
        asking.more(20).await?;
        assert_eq!(credentials(&fixture.pods[0], "reader")?, before);

        harness.sts.lead_to(&next);
        harness.served(&new, "fresh").await?;
        eventually(DEADLINE, async || {
            let now = credentials(&fixture.pods[0], "reader")?;
            ensure!(now != before, "the session of before");
            Ok(())
        })
        .await?;
        asking.more(20).await
    })
}

/// A separate cluster, whose API server is stopped.
async fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_try_init(async || {
            let cluster = Cluster::start().await?;
            install(&cluster).await?;
            Ok(cluster)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_the_api_server_is_away() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let fixture = Fixture::new(BrokerHarness::within(cluster, "api-away", 11).await?, 1).await?;
    let harness = &fixture.harness;
    fixture.asking(async |asking| {
        // The API server hangs without closing a connection.
        cluster.freeze_apiserver()?;
        asking.more(50).await?;
        cluster.thaw_apiserver()?;
        let new = fixture.appears(&fixture.nodes[0], 7).await?;
        harness.served(&new, "fresh").await?;

        cluster.stop_apiserver();
        eventually(DEADLINE, async || {
            let report = harness.admin(1, "/readyz?verbose")?;
            ensure!(report.status == 200, "{}", report.body);
            ensure!(report.body.contains("cannot be reached"), "{}", report.body);
            Ok(())
        })
        .await?;
        asking.more(50).await?;
        cluster.start_apiserver().await?;
        for (node, last) in fixture.nodes.iter().zip([8, 9]) {
            let new = fixture.appears(node, last).await?;
            harness.served(&new, "fresh").await?;
        }
        asking.more(20).await
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_their_node_is_cut_off_from_the_brokers() -> anyhow::Result<()> {
    let fixture = Fixture::new(BrokerHarness::new("cut-off", 12).await?, 1).await?;
    let (harness, [cut, other]) = (&fixture.harness, &fixture.nodes);
    let tells = || {
        let report = cut.admin("/readyz?verbose")?;
        ensure!(report.status == 200, "{}", report.body);
        let mut lines = report.body.lines();
        Ok(lines
            .find(|line| line.contains("broker:"))
            .map(str::to_owned))
    };
    fixture.asking(async |asking| {
        assert_eq!(tells()?, None);
        harness.cut(cut)?;
        let missed = fixture.appears(cut, 7).await?;
        let new = fixture.appears(other, 8).await?;
        harness.served(&new, "fresh").await?;
        // No connection is closed: the agent detects the outage, and its retries fail.
        eventually(DEADLINE, async || {
            let told = tells()?.context("it tells of no trouble")?;
            ensure!(told.contains("does not respond"), "{told}");
            Ok(())
        })
        .await?;
        asking.more(50).await?;
        assert_eq!(ask::get(&missed, CREDENTIALS)?.status, 404);
        harness.reconnect(cut)?;
        harness.served(&missed, "fresh").await?;
        asking.more(20).await
    })
}

/// Opens connections to a broker until it accepts no more, and waits until it has exited.
async fn crowd(harness: &BrokerHarness, number: u8, broker: &mut Rolegate) -> anyhow::Result<()> {
    let target = SocketAddr::from(([10, 9, 0, number], PORT));
    let tls = ClientTls {
        ca: harness.ca(),
        pair: None,
        clock: Clock::system(),
    };
    let mut held = Vec::new();
    // A broker accepts only a few connections from one address.
    let mut addresses = (Ipv4Addr::new(127, 1, 0, 1).to_bits()..).map(Ipv4Addr::from_bits);
    eventually(DEADLINE, async || {
        for address in addresses.by_ref() {
            let socket = harness.lab.node().run(TcpSocket::new_v4)??;
            socket.bind((address, 0).into())?;
            let Ok(stream) = socket.connect(target).await else {
                break;
            };
            let Ok(stream) = tls.connect(stream, HOST).await else {
                break;
            };
            held.push(stream);
        }
        let exited = broker.exited()?;
        exited.with_context(|| format!("it lives, with {} connections", held.len()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_a_broker_runs_out_of_memory() -> anyhow::Result<()> {
    let harness = BrokerHarness::new("starving", 13).await?;
    let mut fixture = Fixture::new(harness, 2).await?;
    let mut brokers = std::mem::take(&mut fixture.brokers);
    let harness = &fixture.harness;
    fixture.asking(async |asking| {
        let serving = |number| harness.metric(number, SERVING);
        let (number, other) = if serving(1)? > 0 { (1, 2) } else { (2, 1) };
        eventually(DEADLINE, async || {
            let streams = [serving(other)?, harness.metric(other, WARM)?];
            ensure!(streams.iter().sum::<u64>() == 2, "{streams:?}");
            Ok(())
        })
        .await?;
        let starving = brokers.get_mut(usize::from(number) - 1);
        let starving = starving.context("a broker")?;
        starving.starve()?;
        crowd(harness, number, starving).await?;
        for (node, last) in fixture.nodes.iter().zip([7, 8]) {
            let new = fixture.appears(node, last).await?;
            harness.served(&new, "fresh").await?;
        }
        assert_eq!(serving(other)?, 2);
        asking.more(50).await
    })
}
