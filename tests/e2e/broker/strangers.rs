//! Clients that hold as many connections as they can get: first without credentials, then with the
//! certificate of one node. Agents of other nodes are still served.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rolegate_proto::client::Requests;
use rolegate_proto::v1::{self, FromAgent, broker_client::BrokerClient, from_agent};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2;
use rolegate_runtime::tls::{ClientTls, TlsFiles};
use rolegate_testkit::lab::in_netns;
use rolegate_testkit::{Rolegate, eventually};
use tokio::io::AsyncRead;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::harness::{BrokerHarness, HOST, PORT};
use crate::fixture::DEADLINE;

const STRANGERS: u16 = 512;
/// The number of addresses that present the certificate of node 1.
const THIEVES: u16 = 256;
/// One eighth of the connections of the shipped manifest.
const SHARE: u64 = 500;
/// The maximum number of unauthenticated connections in the agents' own share: two for each agent.
const EXPECTED: u64 = 6;
/// The limits of streams and connections of one node.
const PER_NODE: usize = 8;
/// The delay before a closed connection is opened again.
const PAUSE: Duration = Duration::from_secs(2);

const UNAUTHENTICATED: &str =
    r#"rolegate_broker_connections{port="agents",state="unauthenticated"}"#;
const AUTHENTICATED: &str = r#"rolegate_broker_connections{port="agents",state="authenticated"}"#;
const CROWDED: &str = r#"rolegate_broker_refused_total{reason="crowded"}"#;

/// The stage after which a connection sends nothing.
#[derive(Debug, Clone, Copy)]
enum Silence {
    Tcp,
    Tls,
    Http2,
}

fn broker() -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], PORT))
}

fn stranger(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(127, 66, high, low)
}

/// Opens a connection to broker 1 from an address of the broker's own node.
async fn dial(from: &Path, address: Ipv4Addr) -> anyhow::Result<TcpStream> {
    let socket = in_netns(from, TcpSocket::new_v4)??;
    socket.bind((address, 0).into())?;
    Ok(socket.connect(broker()).await?)
}

/// Returns the number of connections that broker 1 closed because of a limit.
fn closed(harness: &BrokerHarness, limit: &str) -> anyhow::Result<u64> {
    let series = "rolegate_broker_connections_closed_total";
    harness.metric(1, &format!(r#"{series}{{port="agents",limit="{limit}"}}"#))
}

/// Reads until the other end closes the connection, and counts that.
async fn until_closed(mut stream: impl AsyncRead + Unpin, ended: &AtomicUsize) {
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    ended.fetch_add(1, Ordering::Relaxed);
}

/// Holds a silent connection until the other end closes it. Counts in `ended` the connections that
/// only the other end can have closed.
async fn hold(
    from: &Path,
    address: Ipv4Addr,
    tls: &ClientTls,
    silence: Silence,
    ended: &AtomicUsize,
) -> anyhow::Result<()> {
    let stream = dial(from, address).await?;
    match silence {
        Silence::Tcp => until_closed(stream, ended).await,
        Silence::Tls => until_closed(tls.connect(stream, HOST).await?, ended).await,
        Silence::Http2 => {
            let stream = tls.connect(stream, HOST).await?;
            let (_requests, connection) =
                http2::connect::<_, http_body_util::Empty<bytes::Bytes>>(stream).await?;
            connection.await?;
        }
    }
    Ok(())
}

/// Opens a stream as the agent of node 1, and holds it until the other end closes it. Counts the
/// streams that got a `Welcome`.
async fn steal(
    from: &Path,
    address: Ipv4Addr,
    tls: &ClientTls,
    node: &str,
    welcome: &AtomicUsize,
) -> anyhow::Result<()> {
    let stream = tls.connect(dial(from, address).await?, HOST).await?;
    let (requests, connection) = http2::connect(stream).await?;
    let hello = FromAgent {
        body: Some(from_agent::Body::Hello(v1::Hello {
            node: node.into(),
            version: "0".into(),
            token: String::new(),
        })),
    };
    let outgoing = futures::stream::once(async { hello });
    let outgoing = futures::StreamExt::chain(outgoing, futures::stream::pending());
    let mut client =
        BrokerClient::with_origin(Requests(requests), http::Uri::from_static("https://broker"));
    let talk = async {
        let mut incoming = client.serve(outgoing).await?.into_inner();
        if incoming.message().await?.is_some() {
            welcome.fetch_add(1, Ordering::Relaxed);
            while incoming.message().await?.is_some() {}
            welcome.fetch_sub(1, Ordering::Relaxed);
        }
        // The client holds the connection as long as it can.
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        ended = connection => Ok(ended?),
        refused = talk => refused,
    }
}

/// The clients that attack broker 1 from its own node.
struct Attack {
    from: Arc<PathBuf>,
    ca: PathBuf,
    /// The certificate of a node.
    pair: TlsFiles,
    node: String,
}

impl Attack {
    fn tls(&self, pair: Option<TlsFiles>) -> ClientTls {
        ClientTls {
            ca: self.ca.clone(),
            pair,
            clock: Clock::system(),
        }
    }

    /// Holds silent connections from many addresses, and reopens those that are closed.
    fn silent(&self, ended: &Arc<AtomicUsize>) -> JoinSet<()> {
        let mut strangers = JoinSet::new();
        for n in 0..STRANGERS {
            for silence in [Silence::Tcp, Silence::Tls, Silence::Http2] {
                let (from, tls, ended) = (self.from.clone(), self.tls(None), ended.clone());
                strangers.spawn(async move {
                    loop {
                        let _ = hold(&from, stranger(n), &tls, silence, &ended).await;
                        tokio::time::sleep(PAUSE).await;
                    }
                });
            }
        }
        strangers
    }

    /// Opens streams with the node's certificate from these addresses, and reopens those that are
    /// closed.
    fn stealing(
        &self,
        addresses: impl Iterator<Item = u16>,
        welcome: &Arc<AtomicUsize>,
    ) -> JoinSet<()> {
        let mut thieves = JoinSet::new();
        for n in addresses {
            let (from, tls) = (self.from.clone(), self.tls(Some(self.pair.clone())));
            let (node, welcome) = (self.node.clone(), welcome.clone());
            thieves.spawn(async move {
                loop {
                    let _ = steal(&from, stranger(n), &tls, &node, &welcome).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        thieves
    }
}

/// Returns the certificate of a node, and the file of its authority.
fn certificate(folder: &Path, node: &str) -> anyhow::Result<(TlsFiles, PathBuf)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(format!("rolegate://node/{node}").try_into()?)];
    let key = KeyPair::generate()?;
    let files = TlsFiles {
        certificate: folder.join("node.crt"),
        key: folder.join("node.key"),
    };
    let authority = folder.join("nodes.crt");
    std::fs::write(&files.certificate, params.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    std::fs::write(&authority, issuer.pem())?;
    Ok((files, authority))
}

/// Starts an agent, which must serve its node's pod.
async fn starts(
    harness: &BrokerHarness,
    node: &super::harness::Node,
    pod: &crate::fixture::Pod,
    role: &str,
) -> anyhow::Result<Rolegate> {
    let agent = harness.agent(node).await?;
    harness.served(pod, role).await?;
    Ok(agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_lock_no_agent_out() -> anyhow::Result<()> {
    let harness = BrokerHarness::new("strangers", 27).await?;
    let namespace = harness.named("a");
    harness.cluster.create_namespace(&namespace, &[]).await?;
    let nodes = [
        harness.node(1).await?,
        harness.node(2).await?,
        harness.node(3).await?,
    ];
    let mut pods = Vec::new();
    for ((node, role), last) in nodes.iter().zip(["reader", "writer", "fresh"]).zip(5..) {
        let pod = harness.pod(node, last)?;
        let object = harness.object(node, "a", role, &pod).role(role);
        harness.cluster.run_pod(&object).await?;
        pods.push(pod);
    }
    let folder = tempfile::tempdir()?;
    let (pair, authority) = certificate(folder.path(), &nodes[0].name)?;
    let authority = format!("--client-ca={}", authority.display());
    let flags = [
        "--layer=namespace=off",
        "--max-agent-connections=4000",
        &authority,
    ];
    let _broker = harness.broker(1, &flags).await?;
    let _first = starts(&harness, &nodes[0], &pods[0], "reader").await?;

    let attack = Attack {
        from: Arc::new(harness.lab.node().path()),
        ca: harness.ca(),
        pair,
        node: nodes[0].name.clone(),
    };
    let ended = Arc::new(AtomicUsize::new(0));
    let mut strangers = attack.silent(&ended);
    eventually(DEADLINE, async || {
        let held = harness.metric(1, UNAUTHENTICATED)?;
        let evicted = closed(&harness, "unauthenticated")?;
        ensure!(
            held >= SHARE && evicted > 0,
            "{held} are held, {evicted} were evicted"
        );
        Ok(())
    })
    .await?;
    // The limit is visible to operators, and the broker is ready.
    let ready = harness.admin(1, "/readyz?verbose")?;
    ensure!(ready.status == 200, "{}", ready.body);
    for said in ["agent connections", "too many are unauthenticated"] {
        ensure!(ready.body.contains(said), "{}", ready.body);
    }
    // The address of an agent's pod is known to the broker, so the agent is served along with all
    // of them.
    let start = Instant::now();
    let _second = starts(&harness, &nodes[1], &pods[1], "writer").await?;
    println!(
        "from an agent's start among {STRANGERS} silent addresses to its pod's credentials: {:.2?}",
        start.elapsed()
    );
    newcomer_takes_a_strangers_place(&harness, &attack, &ended).await?;
    strangers.shutdown().await;

    // One certificate, presented from many addresses.
    let welcome = Arc::new(AtomicUsize::new(0));
    let mut thieves = attack.stealing(0..THIEVES, &welcome);
    eventually(DEADLINE, async || {
        let crowded = harness.metric(1, CROWDED)?;
        ensure!(crowded >= u64::from(THIEVES), "{crowded} were refused");
        Ok(())
    })
    .await?;
    let _third = starts(&harness, &nodes[2], &pods[2], "fresh").await?;
    // All streams of node 1, and two for each of the other agents.
    let authenticated = usize::try_from(harness.metric(1, AUTHENTICATED)?)?;
    ensure!(
        authenticated <= PER_NODE + 4,
        "{authenticated} are authenticated"
    );
    ensure!(welcome.load(Ordering::Relaxed) <= PER_NODE);
    for (pod, role) in pods.iter().zip(["reader", "writer", "fresh"]) {
        harness.served(pod, role).await.context(role)?;
    }
    thieves.shutdown().await;
    Ok(())
}

/// An authenticated client from an address that the broker does not know is served because an
/// unknown client is evicted, not because one has timed out.
async fn newcomer_takes_a_strangers_place(
    harness: &BrokerHarness,
    attack: &Attack,
    ended: &AtomicUsize,
) -> anyhow::Result<()> {
    let before = closed(harness, "unauthenticated")?;
    let welcome = Arc::new(AtomicUsize::new(0));
    let mut newcomer = attack.stealing(STRANGERS..=STRANGERS, &welcome);
    eventually(DEADLINE, async || {
        ensure!(welcome.load(Ordering::Relaxed) > 0, "no newcomer is served");
        Ok(())
    })
    .await?;
    let evicted = closed(harness, "unauthenticated")?;
    ensure!(evicted > before, "welcome without an eviction");
    // Each closed connection of an unknown client was evicted for another connection, or rejected
    // because its address opens too many.
    let ended = u64::try_from(ended.load(Ordering::Relaxed))?;
    let mut counted = 0;
    for limit in ["unauthenticated", "peer", "rate"] {
        counted += closed(harness, limit)?;
    }
    ensure!(
        ended > 0 && ended <= counted,
        "{ended} connections ended, and {counted} were closed by a limit"
    );
    let held = harness.metric(1, UNAUTHENTICATED)?;
    ensure!(held <= SHARE + EXPECTED, "{held} are held");
    newcomer.shutdown().await;
    Ok(())
}
