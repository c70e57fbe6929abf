//! The surroundings of brokers: a lab whose node runs the brokers, and other labs as the nodes that
//! they serve.
//!
//! ```text
//!  node 1 ── 10.9.1.1 ──┐ brokers' node ── 169.254.169.254 (its role: node)
//!  node 2 ── 10.9.2.1 ──┴── broker 1: 10.9.0.1, broker 2: 10.9.0.2
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use rolegate_devkit::{Imds, ImdsOptions};
use rolegate_testkit::cases::User;
use rolegate_testkit::lab::{self, Lab};
use rolegate_testkit::request::Requests;
use rolegate_testkit::{Cluster, Forward, Rolegate, TestPod, eventually};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::ask::{self, ADMIN, Reply};
use crate::fixture::{self, DEADLINE, Pod, start_imds, start_imds_with};
use crate::shim::Sts;

/// The namespace of brokers and agents.
pub(crate) const HOME: &str = "rolegate-system";
/// The name by which agents connect to the brokers.
pub(crate) const HOST: &str = "rolegate-broker.rolegate-system.svc";
/// The brokers' port.
pub(crate) const PORT: u16 = 9443;
/// The audience of agents' tokens.
pub(crate) const AUDIENCE: &str = "rolegate";

/// A cluster with only the brokers' manifests, so that agents have no rights.
pub(crate) async fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_try_init(async || {
            let cluster = Cluster::start().await?;
            install(&cluster).await?;
            Ok(cluster)
        })
        .await
}

/// Applies the brokers' manifests to a cluster.
pub(crate) async fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let manifests = ["crds", "rolegate-broker", "rolegate-agent-broker"];
    cluster.install(&manifests).await
}

/// The machines that run brokers. Harnesses in one cluster differ by their name, which is the
/// prefix of their nodes and namespaces, and by the `third` octet of pods' addresses.
pub(crate) struct BrokerHarness {
    pub(crate) cluster: &'static Cluster,
    pub(crate) sts: Sts,
    pub(crate) lab: Lab,
    name: &'static str,
    third: u8,
    kubeconfig: PathBuf,
    pair: (PathBuf, PathBuf),
    dir: TempDir,
    _imds: Imds,
    _forwards: [Forward; 2],
}

/// A node without rights: its metadata service has no role, and it can reach neither the API server
/// nor STS.
pub(crate) struct Node {
    pub(crate) name: String,
    /// The brokers' end of the link to the node.
    link: String,
    pub(crate) uid: String,
    pub(crate) lab: Lab,
    pub(crate) imds: Imds,
    /// The pod of the node's agent, and the token that is projected into it.
    pub(crate) agent: PodObject,
    pub(crate) token: String,
    /// A listener at the addresses of the API server and STS: no call may arrive.
    tripwire: TcpListener,
    dir: TempDir,
}

impl BrokerHarness {
    pub(crate) async fn new(name: &'static str, third: u8) -> anyhow::Result<Self> {
        Self::within(cluster().await?, name, third).await
    }

    /// Creates a harness in another cluster, to which the brokers' manifest was applied.
    pub(crate) async fn within(
        cluster: &'static Cluster,
        name: &'static str,
        third: u8,
    ) -> anyhow::Result<Self> {
        Self::with_sts(cluster, name, third, Sts::start().await?).await
    }

    /// Does the same with this STS.
    pub(crate) async fn with_sts(
        cluster: &'static Cluster,
        name: &'static str,
        third: u8,
        sts: Sts,
    ) -> anyhow::Result<Self> {
        let token = cluster
            .service_account_token(HOME, "rolegate-broker")
            .await?;
        let lab = Lab::new()?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("ca.crt"), cluster.ca_pem())?;
        for address in ["10.9.0.1/32", "10.9.0.2/32"] {
            lab.node().exec(&format!("ip addr add {address} dev lo"))?;
        }
        Ok(Self {
            kubeconfig: cluster.kubeconfig_for_token(&format!("broker-{name}"), &token)?,
            pair: cluster.serving_pair(&format!("broker-{name}"), &[HOST])?,
            _imds: start_imds(&lab).await?,
            _forwards: [
                Forward::new(lab.node(), cluster.port())?,
                Forward::new(lab.node(), sts.port())?,
            ],
            cluster,
            sts,
            lab,
            name,
            third,
            dir,
        })
    }

    /// Returns the full name of one of this harness's namespaces or nodes.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    /// Returns the authorities of brokers' certificates.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Starts broker 1 or 2 with the flags of the shipped manifest and these, and waits until it is
    /// ready.
    pub(crate) async fn broker(&self, number: u8, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let node = self.lab.node();
        let mut command = node.command(&Rolegate::path()?.display().to_string());
        let (certificate, key) = &self.pair;
        command
            .args(["broker", "--auto-discover-base-arn"])
            // Each harness has its own rules.
            .arg("--cluster-config=off")
            .arg(format!("--listen-address=10.9.0.{number}:{PORT}"))
            .arg(format!("--metrics-address=10.9.0.{number}:9092"))
            .arg(format!("--ledger-address=127.0.0.{number}:9091"))
            .arg(format!("--name=broker-{number}"))
            .arg("--certificate=files")
            .arg(format!("--tls-cert={}", certificate.display()))
            .arg(format!("--tls-key={}", key.display()))
            .args(flags)
            .env("AWS_ENDPOINT_URL", self.sts.url())
            .env("ROLEGATE_KUBECONFIG", &self.kubeconfig)
            .envs([("POD_IP", "10.0.0.1"), ("HOST_IP", "10.0.0.1")]);
        let mut broker = Rolegate::spawn_command(&command)?;
        broker
            .until(DEADLINE, async || {
                let reply = self.admin(number, "/readyz")?;
                ensure!(reply.status == 200, "{}", reply.body);
                Ok(())
            })
            .await?;
        Ok(broker)
    }

    /// Sends a request to a broker's operators' port.
    pub(crate) fn admin(&self, number: u8, path: &str) -> anyhow::Result<Reply> {
        let address = SocketAddr::from(([10, 9, 0, number], 9092));
        ask::get_at(self.lab.node(), address, path)
    }

    /// Returns a number of a broker's metrics; 0 if the series does not exist yet.
    pub(crate) fn metric(&self, number: u8, series: &str) -> anyhow::Result<u64> {
        let metrics = self.admin(number, "/metrics")?.body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        Ok(value.map_or(Ok(0), |value| value.trim().parse())?)
    }

    /// Runs `rolegate ledger` for a broker.
    pub(crate) fn ledger(&self, number: u8, arguments: &[&str]) -> anyhow::Result<Output> {
        let address = format!("--address=127.0.0.{number}:9091");
        let ledger: Vec<&str> = ["ledger", &address]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        fixture::rolegate(self.lab.node(), &ledger)
    }

    /// Creates node `number` with its agent's pod.
    pub(crate) async fn node(&self, number: u8) -> anyhow::Result<Node> {
        let roleless = ImdsOptions {
            node_role: None,
            ..ImdsOptions::default()
        };
        self.node_with(number, roleless).await
    }

    /// Does the same, with a metadata service that has these `options`.
    pub(crate) async fn node_with(&self, number: u8, options: ImdsOptions) -> anyhow::Result<Node> {
        let name = self.named(&format!("node-{number}"));
        let address = Ipv4Addr::new(10, 9, number, 1);
        let lab = Lab::new()?;
        self.join(&lab, number, address)?;
        let brokers = [1, 2].map(|number| IpAddr::from([10, 9, 0, number]));
        lab.node().set_host(HOST, &brokers)?;
        let object = self.cluster.create_node(&name, address.into()).await?;
        let agent = TestPod::new(HOME, &format!("agent-{name}"), &name)
            .service_account("rolegate-agent")
            .host_network()
            .address(address);
        let agent = self.cluster.run_pod(&agent).await?;
        let nowhere = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let tripwire = lab.node().run(nowhere)??;
        tripwire.set_nonblocking(true)?;
        let dir = tempfile::tempdir()?;
        for folder in ["netns", "runtime"] {
            std::fs::create_dir(dir.path().join(folder))?;
        }
        let token = self.cluster.pod_token(&agent, AUDIENCE).await?;
        std::fs::write(dir.path().join("token"), &token)?;
        Ok(Node {
            imds: start_imds_with(&lab, options).await?,
            uid: object.metadata.uid.context("a node without UID")?,
            link: link(number),
            name,
            lab,
            agent,
            token,
            tripwire,
            dir,
        })
    }

    /// Connects a node to the brokers' node.
    fn join(&self, lab: &Lab, number: u8, address: Ipv4Addr) -> anyhow::Result<()> {
        let (brokers, node, link) = (self.lab.node(), lab.node(), link(number));
        brokers.exec(&format!(
            "ip link add {link} type veth peer name wan0 netns {}",
            node.name()
        ))?;
        brokers.exec(&format!("ip link set {link} up"))?;
        node.exec("ip link set wan0 up")?;
        node.exec(&format!("ip addr add {address}/32 dev wan0"))?;
        node.exec(&format!("ip route add 10.9.0.0/24 dev wan0 src {address}"))?;
        brokers.exec(&format!(
            "ip route add {address}/32 dev {link} src 10.9.0.1"
        ))?;
        Ok(())
    }

    /// Disconnects a node: packets between the node and the brokers are dropped without an error.
    pub(crate) fn cut(&self, node: &Node) -> anyhow::Result<()> {
        let link = &node.link;
        self.lab.node().exec(&format!(
            "nft add table inet cut-{link} {{ \
             chain in {{ type filter hook prerouting priority -300; iifname {link} drop; }}; \
             chain out {{ type filter hook postrouting priority 300; oifname {link} drop; }}; }}"
        ))?;
        Ok(())
    }

    /// Restores the link.
    pub(crate) fn reconnect(&self, node: &Node) -> anyhow::Result<()> {
        let brokers = self.lab.node();
        brokers.exec(&format!("nft delete table inet cut-{}", node.link))?;
        Ok(())
    }

    /// Creates a pod's network namespace on a node.
    pub(crate) fn pod(&self, node: &Node, last: u8) -> anyhow::Result<Pod> {
        let address = format!("10.1.{}.{last}", self.third);
        Pod::new(&node.lab, &address, &self.sts, node.dir.path())
    }

    /// Returns the object of a pod in one of this harness's namespaces.
    pub(crate) fn object(
        &self,
        node: &Node,
        namespace: &str,
        name: &str,
        pod: &lab::Pod,
    ) -> TestPod {
        TestPod::new(&self.named(namespace), name, &node.name)
            .address(pod.v4)
            .address(pod.v6)
    }

    /// Starts an agent on the node with the flags of the shipped manifest, and waits until it is
    /// ready.
    pub(crate) async fn agent(&self, node: &Node) -> anyhow::Result<Rolegate> {
        let mut agent = self.unready_agent(node, &[])?;
        node.ready(&mut agent).await?;
        Ok(agent)
    }

    /// Starts an agent with these flags in addition. It need not become ready.
    pub(crate) fn unready_agent(&self, node: &Node, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let nowhere = node.tripwire.local_addr()?.port();
        let mut command = node.agent()?;
        command
            .arg(format!("--broker=https://{HOST}:{PORT}"))
            .args(flags)
            .env("ROLEGATE_BROKER_CA", self.ca())
            .env("ROLEGATE_BROKER_TOKEN", node.dir.path().join("token"))
            // Variables that every pod of a cluster has, and the endpoint of AWS.
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", nowhere.to_string())
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{nowhere}"));
        Rolegate::spawn_command(&command)
    }

    /// Opens the connections of a standalone agent: to the API server and to STS.
    pub(crate) fn way_out(&self, node: &Node) -> anyhow::Result<[Forward; 2]> {
        let node = node.lab.node();
        Ok([
            Forward::new(node, self.cluster.port())?,
            Forward::new(node, self.sts.port())?,
        ])
    }

    /// Starts the shipped standalone agent, which authenticates to the API server with `token`, and
    /// waits until it is ready.
    pub(crate) async fn agent_alone(
        &self,
        node: &Node,
        token: &str,
        flags: &[&str],
    ) -> anyhow::Result<Rolegate> {
        let kubeconfig = self.cluster.kubeconfig_for_token(&node.name, token)?;
        let mut command = node.agent()?;
        command
            .args(["--auto-discover-base-arn", "--cluster-config=off"])
            .args(flags)
            .env("ROLEGATE_KUBECONFIG", kubeconfig)
            .env("AWS_ENDPOINT_URL", self.sts.url());
        let mut agent = Rolegate::spawn_command(&command)?;
        node.ready(&mut agent).await?;
        Ok(agent)
    }

    /// Waits until a pod gets credentials of a role; returns the access key, which STS issued for
    /// that role.
    pub(crate) async fn served(&self, pod: &Pod, role: &str) -> anyhow::Result<String> {
        let document = eventually(DEADLINE, async || fixture::credentials(pod, role)).await?;
        let key = document["AccessKeyId"].as_str().context("no access key")?;
        let arn = self.sts.role_of(key)?;
        ensure!(arn.ends_with(&format!(":role/{role}")), "{arn}");
        Ok(key.to_owned())
    }
}

/// Returns the name of the brokers' end of the link to a node.
fn link(number: u8) -> String {
    format!("node{number}")
}

impl Node {
    /// Returns the command that starts agents with a broker and without one.
    fn agent(&self) -> anyhow::Result<Command> {
        let program = Rolegate::path()?.display().to_string();
        let mut command = self.lab.node().command(&program);
        command
            .args(["agent", "--redirect=nftables", "--host-interface=eni+"])
            .args(["--host-ip=10.0.0.1", "--host-ipv6=fd10::1"])
            .arg(format!("--node={}", self.name))
            .env("ROLEGATE_RUNTIME_DIR", self.dir.path().join("runtime"))
            .env("ROLEGATE_REDIRECT_CHECK_DIR", self.dir.path().join("netns"));
        Ok(command)
    }

    /// Waits until the node's agent is ready.
    pub(crate) async fn ready(&self, agent: &mut Rolegate) -> anyhow::Result<()> {
        agent
            .until(DEADLINE, async || {
                let reply = self.admin("/readyz")?;
                ensure!(reply.status == 200, "{}", reply.body);
                Ok(())
            })
            .await
    }

    /// Sends a request to the operators' port of the node's agent.
    pub(crate) fn admin(&self, path: &str) -> anyhow::Result<Reply> {
        ask::get_at(self.lab.node(), ADMIN, path)
    }

    /// Returns a client with the rights of the node's kubelet.
    pub(crate) fn kubelet(&self, cluster: &Cluster) -> anyhow::Result<Requests> {
        let user = User {
            name: format!("system:node:{}", self.name),
            groups: vec!["system:nodes".into(), "system:authenticated".into()],
        };
        Ok(cluster.requests()?.as_user(&user))
    }

    /// Returns true if any process on the node called the API server or STS.
    pub(crate) fn called_out(&self) -> bool {
        self.tripwire.accept().is_ok()
    }
}
