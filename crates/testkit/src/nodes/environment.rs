//! The environment of a test cluster: its resources on the machine, all named
//! `rolegate-nodes-PID-NUMBER`. They are a network namespace with a bridge for the nodes, a
//! directory, and the stand-ins for AWS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use anyhow::{Context, ensure};
use rolegate_devkit::{Imds, ImdsOptions, Sts, StsOptions};
use tokio::runtime::{Builder, Runtime};

use super::spec::NodeSpec;
use crate::lab::Namespace;
use crate::repository;

/// The control plane's address and the nodes' gateway.
pub const CONTROL_PLANE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// The URL of STS in the environment.
pub const STS_URL: &str = "http://192.168.50.1:8000";
/// The nodes' network.
const NETWORK: &str = "192.168.50.1/24";
const METADATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
const STS_PORT: u16 = 8000;
/// The bridge of the nodes.
const BRIDGE: &str = "nodes";

/// The number of environments of this process, for unique names.
static ENVIRONMENTS: AtomicUsize = AtomicUsize::new(0);

/// The network namespace and the directory. Dropping it removes them, and everything else on the
/// machine with the environment's name.
#[derive(Debug)]
pub(super) struct Environment {
    name: String,
    folder: PathBuf,
    netns: Option<Namespace>,
    janitor: Child,
}

impl Environment {
    pub(super) fn new() -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "test clusters with nodes need root: run these tests with sudo"
        );
        clean(&["--sweep"])?;
        let number = ENVIRONMENTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("rolegate-nodes-{}-{number}", std::process::id());
        let folder = env::temp_dir().join(&name);
        let janitor = janitor(&name)?;
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let netns = Namespace::new(name.clone())?;
        netns.exec(&format!("ip link add {BRIDGE} type bridge"))?;
        netns.exec(&format!("ip addr add {NETWORK} dev {BRIDGE}"))?;
        netns.exec(&format!("ip addr add {}/32 dev {BRIDGE}", METADATA.ip()))?;
        netns.exec(&format!("ip link set {BRIDGE} up"))?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        // Traffic between nodes enters and leaves by the same interface.
        for scope in ["all", BRIDGE] {
            netns.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
        }
        Ok(Self {
            name,
            folder,
            netns: Some(netns),
            janitor,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn netns(&self) -> anyhow::Result<&Namespace> {
        self.netns
            .as_ref()
            .context("the environment is being removed")
    }

    /// Connects a node's namespace to the bridge, with routes in both directions.
    pub(super) fn connect(&self, node: &Namespace, spec: &NodeSpec) -> anyhow::Result<()> {
        let environment = self.netns()?;
        let port = &spec.name;
        environment.exec(&format!(
            "ip link add {port} type veth peer name eth0 netns {}",
            node.name()
        ))?;
        environment.exec(&format!("ip link set {port} master {BRIDGE} up"))?;
        node.exec(&format!("ip addr add {}/24 dev eth0", spec.address))?;
        node.exec("ip link set eth0 up")?;
        node.exec(&format!("ip route add default via {CONTROL_PLANE_ADDRESS}"))?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        // Other nodes use the environment as their router, which knows all pod ranges.
        environment.exec(&format!(
            "ip route replace {} via {}",
            spec.pods, spec.address
        ))?;
        Ok(())
    }

    /// Disconnects a node.
    pub(super) fn disconnect(&self, spec: &NodeSpec) -> anyhow::Result<()> {
        self.netns()?
            .exec(&format!("ip link del {}", spec.name))
            .map(drop)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        drop(self.netns.take());
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Starts a child that removes everything with this name once this process exits, in any way,
/// or the environment is dropped.
fn janitor(name: &str) -> anyhow::Result<Child> {
    script("cleanup.sh")
        .args(["--after", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start bash")
}

/// Runs `cleanup.sh` to completion.
pub(super) fn clean(arguments: &[&str]) -> anyhow::Result<()> {
    let output = script("cleanup.sh")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot start bash")?;
    ensure!(
        output.status.success(),
        "cleanup.sh {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Returns a command that runs a script of this directory.
pub(super) fn script(name: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(repository().join("crates/testkit/src/nodes").join(name));
    command
}

/// The metadata service and STS of the environment, on threads of their own: they outlive the
/// runtime of the test that started them.
#[derive(Debug)]
pub(super) struct StandIns {
    pub(super) imds: Imds,
    pub(super) sts: Sts,
    runtime: Option<Runtime>,
}

impl StandIns {
    /// Starts both in the environment's namespace. STS knows the node's credentials and checks
    /// signatures.
    pub(super) fn start(environment: &Namespace) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (imds, sts) = environment.run(|| {
            runtime.block_on(async {
                let imds = Imds::start(METADATA, ImdsOptions::default()).await?;
                let options = StsOptions {
                    keys: Some([imds.node_key()].into()),
                    ..StsOptions::default()
                };
                let sts = Sts::start((CONTROL_PLANE_ADDRESS, STS_PORT).into(), options).await?;
                anyhow::Ok((imds, sts))
            })
        })??;
        Ok(Self {
            imds,
            sts,
            runtime: Some(runtime),
        })
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        // A runtime cannot be shut down inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
