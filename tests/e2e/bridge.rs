//! Pods that share a bridge. One of them takes over its neighbors' addresses: with forged frames,
//! by CAP_NET_RAW, and by configuring them in its own namespace, by CAP_NET_ADMIN.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, ensure};
use rolegate_testkit::lab::{PodLink, PodName};
use rolegate_testkit::{Cluster, Rolegate, eventually, lab, repository};
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::ask::{self, CREDENTIALS, METADATA, METADATA_6};
use crate::fixture::{AgentFixture, DEADLINE, credentials};

/// The node's addresses on the bridge.
const NODE: [&str; 2] = ["10.2.0.1", "fd02::1"];
const CAP_NET_RAW: u64 = 1 << 13;
/// Sends one HTTP request from an address of the pod's own interface: ADDRESS TARGET PATH.
const FROM_ADDRESS: &str = r#"
import socket, sys
address, target, path = sys.argv[1:]
try:
    with socket.create_connection((target, 80), 3, (address, 0)) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n".encode())
        while data := stream.recv(65536):
            print(data.decode(errors="replace"), end="")
except OSError as error:
    print(error)
"#;

/// Ways in which a neighbor deceives the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoofing {
    /// It announces the victim's address at its own MAC address.
    Address,
    /// It sends from the victim's MAC address, so that the bridge learns its port for that address.
    Mac,
}

#[derive(Debug, Deserialize)]
struct Theft {
    capabilities: u64,
    tries: Vec<Try>,
}

#[derive(Debug, Deserialize)]
struct Try {
    connected: bool,
    answer: String,
}

impl Theft {
    fn of(mut child: Child) -> anyhow::Result<Self> {
        // It continues until its standard input is closed.
        drop(child.stdin.take());
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{output:?}");
        let theft: Self = serde_json::from_slice(&output.stdout)?;
        ensure!(theft.capabilities == CAP_NET_RAW, "{theft:?}");
        Ok(theft)
    }

    fn connected(&self) -> bool {
        self.tries.iter().any(|it| it.connected)
    }

    fn succeeded(&self) -> bool {
        self.tries
            .iter()
            .any(|it| it.answer.contains("AccessKeyId"))
    }
}

/// A pod on the bridge.
struct Bridged {
    name: &'static str,
    pod: lab::Pod,
}

impl Bridged {
    fn path(&self) -> String {
        format!("{CREDENTIALS}{}", self.name)
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.pod.v4.into(), self.pod.v6.into()]
    }

    /// Requests the pod's credentials as an SDK does.
    fn ask(&self, target: SocketAddr) -> anyhow::Result<()> {
        let reply = ask::get_at(&self.pod, target, &self.path())?;
        ensure!(
            reply.status == 200 && reply.body.contains("AccessKeyId"),
            "{reply:?}"
        );
        Ok(())
    }
}

struct Bridge<'a> {
    cluster: &'a Cluster,
    fixture: AgentFixture,
    redirect: String,
}

impl<'a> Bridge<'a> {
    async fn new(cluster: &'a Cluster, backend: &str) -> anyhow::Result<Self> {
        let fixture = AgentFixture::new(&format!("bridge-{backend}"), cluster).await?;
        cluster
            .create_namespace(&fixture.namespace("a"), &[])
            .await?;
        Ok(Self {
            cluster,
            fixture,
            redirect: format!("--redirect={backend}"),
        })
    }

    /// A pod that the runtime has connected to the bridge and recorded, and whose phase in
    /// Kubernetes is `phase`.
    async fn pod(&self, name: &'static str, address: &str, phase: &str) -> anyhow::Result<Bridged> {
        let pod = self.fixture.bridged(address)?;
        let object = self.fixture.object("a", name, &pod).role(name);
        let object = self.cluster.create_pod(&object).await?;
        let of = PodName {
            namespace: &self.fixture.namespace("a"),
            name,
            uid: object.metadata.uid.as_deref().context("no UID")?,
        };
        pod.record(self.fixture.lab.node(), &self.fixture.results(), of)?;
        let bridged = Bridged { name, pod };
        self.cluster
            .set_pod_status(of.namespace, name, phase, &bridged.addresses())
            .await?;
        Ok(bridged)
    }

    fn start(&self, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let mut all = vec!["--host-interface=!eth0", self.redirect.as_str()];
        all.extend(flags);
        self.fixture.agent(&all)
    }

    async fn agent(&self, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let mut agent = self.start(flags)?;
        self.fixture.ready(&mut agent).await?;
        Ok(agent)
    }

    /// A neighbor that has only CAP_NET_RAW starts to take over an address of the victim.
    fn begin(
        &self,
        thief: &Bridged,
        victim: &Bridged,
        v6: bool,
        way: Spoofing,
        flags: &[&str],
    ) -> anyhow::Result<Child> {
        let node = self.fixture.lab.node();
        let own = thief.pod.mac("eth0")?;
        let (source, target) = match way {
            Spoofing::Address => (own, [METADATA, METADATA_6]),
            Spoofing::Mac => (victim.pod.mac("eth0")?, [METADATA, METADATA_6]),
        };
        let family = usize::from(v6);
        let (claim, target) = (
            victim.addresses()[family].to_string(),
            target[family].ip().to_string(),
        );
        let script = repository().join("tests/e2e/rawclient.py");
        let mut command = with_only(&thief.pod, "net_raw");
        command.arg("python3").arg(script).args([
            "--interface=eth0",
            "--claim",
            &claim,
            "--target",
            &target,
            "--node",
            NODE[family],
            "--node-mac",
            &node.mac("cni0")?,
            "--source-mac",
            &source,
            "--announce-mac",
            &source,
            "--path",
            &victim.path(),
        ]);
        command.args(flags);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        child.context("setpriv of util-linux and python3 are needed")
    }

    fn steal(
        &self,
        thief: &Bridged,
        victim: &Bridged,
        v6: bool,
        way: Spoofing,
    ) -> anyhow::Result<Theft> {
        Theft::of(self.begin(thief, victim, v6, way, &[])?)
    }

    /// Takes over each of the victim's addresses in every way: the requests arrive and get no
    /// credentials.
    fn gets_nothing(&self, case: &str, thief: &Bridged, victim: &Bridged) -> anyhow::Result<()> {
        for v6 in [false, true] {
            self.gets_nothing_by(case, thief, victim, v6)?;
        }
        Ok(())
    }

    fn gets_nothing_by(
        &self,
        case: &str,
        thief: &Bridged,
        victim: &Bridged,
        v6: bool,
    ) -> anyhow::Result<()> {
        for way in [Spoofing::Address, Spoofing::Mac] {
            let theft = self.steal(thief, victim, v6, way)?;
            let seen = format!("{case}, IPv6 {v6}, {way:?}: {theft:?}");
            ensure!(
                !theft.succeeded(),
                "the neighbour has the credentials: {seen}"
            );
            ensure!(theft.connected(), "no request was sent: {seen}");
        }
        Ok(())
    }

    /// Makes a neighbor with CAP_NET_ADMIN configure in its own namespace: the victim's address,
    /// its MAC address, and both.
    fn writes_nothing_true(&self, thief: &Bridged, victim: &Bridged) -> anyhow::Result<()> {
        let own = thief.pod.mac("eth0")?;
        let victims = victim.pod.mac("eth0")?;
        for (address, mac) in [(true, false), (false, true), (true, true)] {
            if mac {
                thief
                    .pod
                    .exec(&format!("ip link set eth0 address {victims}"))?;
            }
            for (addr, target, length) in [
                (victim.addresses()[0], METADATA, 16),
                (victim.addresses()[1], METADATA_6, 64),
            ] {
                let nodad = if addr.is_ipv6() { "nodad" } else { "" };
                if address {
                    thief
                        .pod
                        .exec(&format!("ip addr add {addr}/{length} dev eth0 {nodad}"))?;
                }
                thief.pod.exec("ip neigh flush dev eth0")?;
                let source = if address {
                    addr
                } else {
                    thief.addresses()[usize::from(addr.is_ipv6())]
                };
                let output = with_only(&thief.pod, "net_admin")
                    .args(["python3", "-c", FROM_ADDRESS, &source.to_string()])
                    .args([&target.ip().to_string(), &victim.path()])
                    .output()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(output.status.success() && !text.is_empty(), "{output:?}");
                ensure!(
                    !text.contains("AccessKeyId"),
                    "address {address}, MAC {mac}: {text}"
                );
                if address {
                    thief
                        .pod
                        .exec(&format!("ip addr del {addr}/{length} dev eth0"))?;
                }
            }
            thief.pod.exec(&format!("ip link set eth0 address {own}"))?;
        }
        Ok(())
    }
}

/// A command that runs in a pod's namespace with one capability.
fn with_only(pod: &lab::Pod, capability: &str) -> Command {
    let mut command = pod.command("setpriv");
    for set in ["--bounding-set", "--inh-caps"] {
        command.arg(format!("{set}=-all,+{capability}"));
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn bridge_neighbour_gets_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let runtime = Handle::current();
    let on = |backend: &'static str| {
        runtime.block_on(async {
            let bridge = Bridge::new(cluster, backend).await?;
            neighbours(&bridge).await.context(backend)
        })
    };
    // Most of the time is spent waiting.
    tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            let other = scope.spawn(|| on("iptables-nft"));
            let one = on("nftables");
            other.join().unwrap().and(one)
        })
    })
}

async fn neighbours(bridge: &Bridge<'_>) -> anyhow::Result<()> {
    let thief = bridge.pod("thief", "10.2.0.66", "Running").await?;
    let silent = bridge.pod("silent", "10.2.0.5", "Running").await?;

    // Without the runtime's records the theft succeeds, because the node trusts the packets.
    let learn = ["--unrecorded-addresses=learn", "--cni-results-dir="];
    let mut open = bridge.agent(&learn).await?;
    for v6 in [false, true] {
        let theft = bridge.steal(&thief, &silent, v6, Spoofing::Address)?;
        ensure!(
            theft.succeeded(),
            "no theft to be kept from, IPv6 {v6}: {theft:?}"
        );
    }
    eventually(DEADLINE, async || {
        let ready = bridge.fixture.admin("/readyz?verbose")?.body;
        ensure!(ready.contains("unrecorded-addresses=learn"), "{ready}");
        Ok(())
    })
    .await?;
    open.stop().await?;

    let pending = bridge.pod("pending", "10.2.0.6", "Pending").await?;
    let reachable = bridge.pod("reachable", "10.2.0.7", "Running").await?;
    let dual = bridge.pod("dual", "10.2.0.8", "Running").await?;
    let known = bridge.pod("known", "10.2.0.9", "Running").await?;
    let mut agent = bridge.agent(&[]).await?;

    bridge.gets_nothing("silent", &thief, &silent)?;
    bridge.gets_nothing("pending", &thief, &pending)?;
    talk(bridge, &reachable)?;
    bridge.gets_nothing("reachable", &thief, &reachable)?;
    dual.ask(METADATA)?;
    let theft = bridge.steal(&thief, &dual, true, Spoofing::Address)?;
    ensure!(theft.connected() && !theft.succeeded(), "{theft:?}");
    dual.ask(METADATA)
        .context("its other address is not touched")?;
    bridge.gets_nothing_by("dual stack", &thief, &dual, true)?;

    known.ask(METADATA)?;
    known.ask(METADATA_6)?;
    let on = ["--until-eof"];
    for v6 in [false, true] {
        let taking = bridge.begin(&thief, &known, v6, Spoofing::Address, &on)?;
        agent.kill();
        agent = bridge.agent(&[]).await?;
        let theft = Theft::of(taking)?;
        ensure!(!theft.succeeded(), "restart, IPv6 {v6}: {theft:?}");
        bridge.gets_nothing_by("after a restart", &thief, &known, v6)?;

        let taking = bridge.begin(&thief, &known, v6, Spoofing::Address, &on)?;
        let mut next = bridge.start(&[])?;
        next.wait_for_line("took over", DEADLINE).await?;
        bridge.fixture.ready(&mut next).await?;
        agent.stop().await?;
        agent = next;
        let theft = Theft::of(taking)?;
        ensure!(!theft.succeeded(), "hand-over, IPv6 {v6}: {theft:?}");
        bridge.gets_nothing_by("after a hand-over", &thief, &known, v6)?;
    }
    bridge.writes_nothing_true(&thief, &silent)?;
    routed(bridge, &thief).await?;

    // Once the neighbor stops, all pods get their own credentials.
    for pod in [&silent, &pending, &reachable, &dual, &known, &thief] {
        for target in [METADATA, METADATA_6] {
            eventually(DEADLINE, async || pod.ask(target)).await?;
        }
    }
    let ready = bridge.fixture.admin("/readyz?verbose")?;
    ensure!(!ready.body.contains("no record"), "{}", ready.body);
    ensure!(agent.stop().await?.success());
    Ok(())
}

/// The victim has sent packets to the node, so the node knows its MAC address.
fn talk(bridge: &Bridge<'_>, victim: &Bridged) -> anyhow::Result<()> {
    for (node, addr) in NODE.into_iter().zip(victim.addresses()) {
        // A refused connection is a response too.
        let _ = ask::get_at(&victim.pod, SocketAddr::new(node.parse()?, 9), "/");
        let known = bridge
            .fixture
            .lab
            .node()
            .exec(&format!("ip neigh show {addr} dev cni0"))?;
        ensure!(known.contains(&victim.pod.mac("eth0")?), "{known:?}");
    }
    Ok(())
}

/// A pod with its own route needs no record, and other pods cannot take over its addresses.
async fn routed(bridge: &Bridge<'_>, thief: &Bridged) -> anyhow::Result<()> {
    let fixture = &bridge.fixture;
    let pod = fixture.pod("10.1.0.5")?;
    let neighbour = fixture.lab.pod("10.1.0.6", PodLink::Veth)?;
    let object = fixture.object("a", "routed", &pod).role("routed");
    bridge.cluster.run_pod(&object).await?;
    eventually(DEADLINE, async || credentials(&pod, "routed")).await?;
    for (from, gateway) in [(&neighbour, false), (&thief.pod, true)] {
        for (addr, target, length) in [
            (pod.v4.into(), METADATA, 32),
            (IpAddr::from(pod.v6), METADATA_6, 128),
        ] {
            let nodad = if addr.is_ipv6() { "nodad" } else { "" };
            from.exec(&format!("ip addr add {addr}/{length} dev eth0 {nodad}"))?;
            let output = with_only(from, "net_admin")
                .args(["python3", "-c", FROM_ADDRESS, &addr.to_string()])
                .args([&target.ip().to_string(), &format!("{CREDENTIALS}routed")])
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                text.contains("timed out"),
                "on the bridge {gateway}: {text}"
            );
            from.exec(&format!("ip addr del {addr}/{length} dev eth0"))?;
        }
    }
    credentials(&pod, "routed").map(|_| ())
}
