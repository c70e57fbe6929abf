//! A whole cluster on this machine: a control plane, and nodes with containerd, kubelet and
//! kube-proxy that run real pods. Needs root, and the programs that `make setup` installs.
//!
//! ```text
//!  node-1 192.168.50.11  pods 10.244.1.0/24 ──┐
//!  node-2 192.168.50.12  pods 10.244.2.0/24 ──┤ bridge   192.168.50.1: control plane, STS
//!  …                                          ┘               169.254.169.254: metadata service
//! ```
//! Traffic that no rule on a node redirects reaches the metadata service, as on EC2. The machine's
//! own network, cgroups and kernel parameters are not changed: everything has a name with this
//! process's ID in it, and is removed with the [`TestCluster`] or with the process, however it ends.

mod control_plane;
mod environment;
mod image;
mod images;
mod kubectl;
pub mod machine;
mod node;
mod spec;
mod user;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rolegate_devkit::{Imds, Sts};
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::cluster::binary;
use crate::eventually;
use crate::lab::Namespace;
use control_plane::ControlPlane;
pub use environment::{CONTROL_PLANE_ADDRESS, STS_URL};
use environment::{Environment, StandIns};
pub use image::ImageBuilder;
pub use images::CLIENT;
pub use kubectl::ClientPod;
pub use node::TestNode;
use spec::NodeSpec;
pub use user::{Ran, Shell};

/// Deadline for waiting on other processes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
/// Interval at which nodes are polled. Each poll starts a kubectl process.
const POLL: Duration = Duration::from_millis(300);

/// The network of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cni {
    /// A bridge, `cni0`: the pods of a node share a link.
    Bridge,
    /// A veth pair and a route for each pod, as the AWS VPC CNI and Calico do.
    Ptp,
}

impl Cni {
    /// Returns the matching value of `--host-interface`.
    pub fn host_interface(self) -> &'static str {
        match self {
            Self::Bridge => "cni0",
            Self::Ptp => "veth+",
        }
    }
}

/// Options of a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The initial number of nodes.
    pub nodes: u8,
    /// The network of its pods.
    pub cni: Cni,
    /// A bash script that each node runs at each boot before its kubelet, with `rolegate` in PATH,
    /// and NODE_NAME and HOST_IP set. Empty for none. If it fails, the node stays off.
    pub before_kubelet: String,
    /// The prefix length of the range of addresses for a node's pods. In a /29 range, the sixth pod
    /// of a node gets the first one's address.
    pub pod_prefix: u8,
    /// The key of a `NoSchedule` taint with which nodes register.
    pub startup_taint: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            cni: Cni::Bridge,
            before_kubelet: String::new(),
            pod_prefix: 24,
            startup_taint: None,
        }
    }
}

/// A running cluster. Fields are dropped in order: nodes, control plane, stand-ins, names.
pub struct TestCluster {
    nodes: Vec<TestNode>,
    control_plane: ControlPlane,
    stand_ins: StandIns,
    environment: Environment,
    options: Options,
    images: images::Images,
    tools: PathBuf,
    next: u8,
}

impl TestCluster {
    /// Starts a cluster for one test, and waits until its nodes are ready.
    ///
    /// # Errors
    /// Returns an error with the end of the log if something is missing or does not become ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        machine::state_at_first()?;
        let environment = Environment::new()?;
        let stand_ins = StandIns::start(environment.netns()?)?;
        let binary = spawn_blocking(binary).await??;
        let tools = kubectl::install_tools(&environment, &binary)?;
        let shell = |admin: &Path| kubectl::shell(&environment, &tools, admin);
        let (control_plane, images) = tokio::join!(
            ControlPlane::start(&environment, binary, shell),
            spawn_blocking(images::standard)
        );
        let mut cluster = Self {
            nodes: Vec::new(),
            images: images??,
            control_plane: control_plane?,
            stand_ins,
            environment,
            options,
            tools,
            next: 1,
        };
        for _ in 0..cluster.options.nodes {
            cluster.boot_new()?;
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Returns the two-node cluster with this network that all tests of a test binary share.
    /// rolegate's agents run on it as in the shipped manifest. The first caller starts it, and it
    /// ends with the test process. Tests must use namespaces of their own.
    ///
    /// # Errors
    /// As [`Self::start`]. The next caller retries.
    pub async fn shared(cni: Cni) -> anyhow::Result<&'static Self> {
        static BRIDGE: OnceCell<TestCluster> = OnceCell::const_new();
        static PTP: OnceCell<TestCluster> = OnceCell::const_new();
        let shared = match cni {
            Cni::Bridge => &BRIDGE,
            Cni::Ptp => &PTP,
        };
        shared
            .get_or_try_init(async || {
                let options = Options {
                    cni,
                    ..Options::default()
                };
                let cluster = Self::start(options).await?;
                cluster.install_agents().await?;
                Ok(cluster)
            })
            .await
    }

    /// Returns its name, the prefix of everything that it has on the machine.
    pub fn name(&self) -> &str {
        self.environment.name()
    }

    /// Returns the network namespace of control plane and stand-ins.
    ///
    /// # Errors
    /// Never while the cluster exists.
    pub fn control_plane_netns(&self) -> anyhow::Result<&Namespace> {
        self.environment.netns()
    }

    /// Returns the nodes' metadata service, which has the node's role.
    pub fn imds(&self) -> &Imds {
        &self.stand_ins.imds
    }

    /// Returns the STS at [`STS_URL`]. It knows the node's credentials and those that it issued,
    /// and checks signatures.
    pub fn sts(&self) -> &Sts {
        &self.stand_ins.sts
    }

    /// Returns all nodes, including those that are off.
    pub fn nodes(&self) -> &[TestNode] {
        &self.nodes
    }

    /// Returns the node with this name.
    ///
    /// # Errors
    /// Returns an error if no node has this name.
    pub fn node(&self, name: &str) -> anyhow::Result<&TestNode> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// Adds a node, waits until it is ready, and returns its name.
    ///
    /// # Errors
    /// Returns an error if it does not become ready.
    pub async fn add_node(&mut self) -> anyhow::Result<String> {
        let name = self.boot_new()?;
        self.wait_ready().await?;
        Ok(name)
    }

    /// Powers a node off without a shutdown. Kubernetes notices it after most of a minute.
    ///
    /// # Errors
    /// Returns an error if there is no such node, or if it leaves something behind.
    pub fn kill_node(&mut self, name: &str) -> anyhow::Result<()> {
        let environment = &self.environment;
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.with_context(|| format!("there is no node {name}"))?
            .cut(environment)
    }

    /// Powers a node on, with its disk unchanged.
    ///
    /// # Errors
    /// Returns an error if it is running or unknown.
    pub fn boot_node(&mut self, name: &str) -> anyhow::Result<()> {
        let environment = &self.environment;
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.with_context(|| format!("there is no node {name}"))?
            .boot(environment)
    }

    /// Powers a node off and on: the same disk and pods, with new processes, namespaces and
    /// addresses. Waits until its kubelet has reported.
    ///
    /// # Errors
    /// Returns an error if it does not become ready.
    pub async fn reboot_node(&mut self, name: &str) -> anyhow::Result<()> {
        let before = self.boot_id(name).await?;
        self.kill_node(name)?;
        self.boot_node(name)?;
        eventually(DEADLINE, async || {
            let now = self.boot_id(name).await?;
            ensure!(now != before, "the kubelet of {name} has not reported yet");
            Ok(())
        })
        .await?;
        self.wait_ready().await
    }

    /// Powers a node off for good, removes it from the cluster as a cloud provider does, adds a new
    /// one, and returns its name.
    ///
    /// # Errors
    /// Returns an error if the new one does not become ready.
    pub async fn replace_node(&mut self, name: &str) -> anyhow::Result<String> {
        self.kill_node(name)?;
        self.kubectl(&["delete", "node", name]).await?;
        let at = self
            .nodes
            .iter()
            .position(|node| node.name() == name)
            .with_context(|| format!("there is no node {name}"))?;
        self.nodes.remove(at).scrap()?;
        self.add_node().await
    }

    /// Returns the boot ID that the node's kubelet reports.
    async fn boot_id(&self, name: &str) -> anyhow::Result<String> {
        let node = self.get(&["node", name]).await?;
        Ok(text(&node, "/status/nodeInfo/bootID").to_owned())
    }

    fn boot_new(&mut self) -> anyhow::Result<String> {
        let spec = NodeSpec::new(self.next, self.options.pod_prefix)?;
        self.next += 1;
        let mut node = TestNode::new(
            &self.environment,
            &self.control_plane,
            spec,
            &self.options,
            &self.tools,
        )?;
        node.set_images(&self.images)?;
        node.boot(&self.environment)?;
        let name = node.name().to_owned();
        self.nodes.push(node);
        Ok(name)
    }

    /// Waits until all nodes that are on are ready.
    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.control_plane.check_running()?;
            let mut on = Vec::new();
            for node in self.nodes.iter_mut().filter(|node| node.is_on()) {
                node.check_running()?;
                on.push(node.name().to_owned());
            }
            let waiting = match self.get(&["nodes"]).await {
                Ok(nodes) => unready(&nodes, on),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => Some("the API server".to_owned()),
            };
            let Some(waiting) = waiting else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let log = self.node(&waiting).map(|node| node.log("kubelet"));
                bail!("{waiting} does not get ready: {}", log.unwrap_or_default());
            }
            sleep(POLL).await;
        }
    }
}

/// Returns a string in an object by its path. Empty if the object lacks it.
fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    let found = object.pointer(path).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// Returns the entries of a list at this path. Empty if the object lacks it.
fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    let found = object.pointer(path).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// Returns `true` if a node or a pod is ready.
fn is_ready(object: &Value) -> bool {
    let conditions = list(object, "/status/conditions").iter();
    let mut ready = conditions.filter(|condition| text(condition, "/type") == "Ready");
    ready.any(|condition| text(condition, "/status") == "True")
}

/// Returns the first of these nodes that is not ready in a list of nodes.
fn unready(nodes: &Value, on: Vec<String>) -> Option<String> {
    on.into_iter().find(|name| {
        let nodes = list(nodes, "/items").iter();
        let mut named = nodes.filter(|node| text(node, "/metadata/name") == name);
        !named.any(is_ready)
    })
}
