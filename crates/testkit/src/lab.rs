//! A node with pods, made of network namespaces: real rules process real packets, and the host's
//! own network is not changed.
//!
//! ```text
//!  pod ── veth ──┐
//!  pod ── veth ──┤ bridge cni0      node namespace      veth      imds namespace
//!  pod ── veth ──┴────────────────  eth0 10.0.0.1  ───────────  169.254.169.254
//!  pod ── macvlan ── mac0                fd10::1                fd00:ec2::254
//! ```
//! The node forwards to a namespace that owns the metadata addresses: packets that are not
//! redirected arrive there. Dropping the [`Lab`] removes everything; leftovers of a killed run are
//! removed when the next one starts.

mod cni;
mod netns;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use parking_lot::Mutex;

pub use cni::{PodName, write_record};
pub use netns::{Namespace, in_netns};

/// The node's IPv4 address.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The node's IPv6 address.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 1);

/// The number of labs of this process, for unique names.
static LABS: AtomicUsize = AtomicUsize::new(0);

/// The network connection of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodLink {
    /// A veth pair with a host route, as the VPC CNI and Calico create it. The node's end is named
    /// `eni…`.
    Veth,
    /// A veth pair with a host route. The node's end has the given name.
    VethNamed(&'static str),
    /// A veth pair in the bridge `cni0`. The address must be in 10.2.0.0/16.
    Bridge,
    /// A macvlan next to the node's own `mac0`. The address must be in 10.3.0.0/16.
    Macvlan,
}

/// A network of the node that several pods share.
struct Shared {
    interface: &'static str,
    v4: &'static str,
    v6: &'static str,
}

const BRIDGE: Shared = Shared {
    interface: "cni0",
    v4: "10.2.0.1",
    v6: "fd02::1",
};
const MACVLAN: Shared = Shared {
    interface: "mac0",
    v4: "10.3.0.1",
    v6: "fd03::1",
};

/// A node, and the network beyond it with a place for a metadata service.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    pods: AtomicUsize,
    shared: Mutex<Vec<&'static str>>,
    node: Namespace,
    imds: Namespace,
}

/// A pod's network namespace.
#[derive(Debug)]
pub struct Pod {
    netns: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, derived from the IPv4 address.
    pub v6: Ipv6Addr,
    /// The node's interface that its packets arrive on. For shared networks it belongs to the
    /// network.
    pub interface: String,
    /// The node's end of the pod's own veth pair. `None` for a macvlan.
    pub port: Option<String>,
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.netns
    }
}

impl Lab {
    /// Creates a node without pods.
    ///
    /// # Errors
    /// Returns an error if the process does not run as root, or `ip` of iproute2 is missing.
    pub fn new() -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network-namespace labs need root: run these tests with sudo"
        );
        netns::sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{}-{number}", netns::PREFIX, std::process::id());
        let lab = Self {
            node: Namespace::new(format!("{prefix}-node"))?,
            imds: Namespace::new(format!("{prefix}-imds"))?,
            pods: AtomicUsize::new(0),
            shared: Mutex::default(),
            prefix,
        };
        lab.node.sysctl("net/ipv4/ip_forward", "1")?;
        lab.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let (node, imds) = (&lab.node, &lab.imds);
        node.exec(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            imds.name()
        ))?;
        for (netns, v4, v6) in [
            (node, "10.0.0.1/24", "fd10::1/64"),
            (imds, "10.0.0.254/24", "fd10::fe/64"),
        ] {
            netns.address("eth0", v4, v6)?;
            netns.exec("ip link set eth0 up")?;
        }
        imds.address("lo", "169.254.169.254/32", "fd00:ec2::254/128")?;
        node.default_route("10.0.0.254", "fd10::fe")?;
        imds.default_route("10.0.0.1", "fd10::1")?;
        node.settle("eth0")?;
        imds.settle("eth0")?;
        Ok(lab)
    }

    /// Returns the node's namespace, with the agent and the redirect.
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// Returns the namespace where packets arrive that were not redirected.
    pub fn imds(&self) -> &Namespace {
        &self.imds
    }

    /// Creates a pod with the address `v4`, which is removed when dropped.
    ///
    /// # Errors
    /// Returns an error if the address is invalid or not in the link's network, or if `ip` fails.
    pub fn pod(&self, v4: &str, link: PodLink) -> anyhow::Result<Pod> {
        let v4: Ipv4Addr = v4.parse().with_context(|| format!("no address: {v4}"))?;
        let [_, net, c, d] = v4.octets();
        let v6 = format!("fd{net:02x}::{c:x}:{d:x}").parse()?;
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let netns = Namespace::new(format!("{}-pod{number}", self.prefix))?;
        let port = match link {
            PodLink::VethNamed(name) => Some(name.to_owned()),
            PodLink::Veth => Some(format!("eni{number:x}c{c:02x}{d:02x}")),
            PodLink::Bridge => Some(format!("veth{number:x}")),
            PodLink::Macvlan => None,
        };
        let mut pod = Pod {
            interface: port.clone().unwrap_or_default(),
            netns,
            v4,
            v6,
            port,
        };
        match link {
            PodLink::Veth | PodLink::VethNamed(_) => self.join_routed(&pod)?,
            PodLink::Bridge => self.join_shared(&mut pod, &BRIDGE)?,
            PodLink::Macvlan => self.join_shared(&mut pod, &MACVLAN)?,
        }
        pod.settle("eth0")?;
        self.node.settle(&pod.interface)?;
        Ok(pod)
    }

    /// Creates a veth pair from the pod's `eth0` to the node.
    fn pair(&self, pod: &Pod, port: &str) -> anyhow::Result<()> {
        self.node.exec(&format!(
            "ip link add {port} type veth peer name eth0 netns {}",
            pod.name()
        ))?;
        self.node.exec(&format!("ip link set {port} up"))?;
        Ok(())
    }

    fn join_routed(&self, pod: &Pod) -> anyhow::Result<()> {
        let port = &pod.interface;
        self.pair(pod, port)?;
        pod.address(
            "eth0",
            &format!("{}/32", pod.v4),
            &format!("{}/128", pod.v6),
        )?;
        pod.exec("ip link set eth0 up")?;
        let links = self.node.exec(&format!("ip -o link show {port}"))?;
        let mac = links
            .split_once("link/ether ")
            .and_then(|(_, rest)| rest.split(' ').next())
            .context("ip shows no MAC address")?;
        // The gateway address is unused, but its MAC address is known, so no proxy ARP is needed.
        for gateway in ["169.254.1.1", "fe80::1"] {
            pod.exec(&format!("ip route add {gateway} dev eth0"))?;
            pod.exec(&format!(
                "ip neigh add {gateway} lladdr {mac} dev eth0 nud permanent"
            ))?;
        }
        pod.default_route("169.254.1.1", "fe80::1 dev eth0")?;
        for route in [format!("{}/32", pod.v4), format!("{}/128", pod.v6)] {
            self.node
                .exec(&format!("ip route replace {route} dev {port}"))?;
        }
        Ok(())
    }

    fn join_shared(&self, pod: &mut Pod, network: &Shared) -> anyhow::Result<()> {
        let [_, net, ..] = pod.v4.octets();
        ensure!(
            network.v4.starts_with(&format!("10.{net}.")),
            "{} is not in the network of {}",
            pod.v4,
            network.interface
        );
        pod.interface = network.interface.to_owned();
        self.create_shared(network)?;
        if let Some(port) = &pod.port {
            self.pair(pod, port)?;
            self.node
                .exec(&format!("ip link set {port} master {}", network.interface))?;
        } else {
            // A macvlan is created in its parent's namespace and then moved.
            let temporary = format!("m{}", self.pods.load(Ordering::Relaxed));
            self.node.exec(&format!(
                "ip link add {temporary} link mac-parent type macvlan mode bridge"
            ))?;
            self.node.exec(&format!(
                "ip link set {temporary} netns {} name eth0",
                pod.name()
            ))?;
        }
        pod.address("eth0", &format!("{}/16", pod.v4), &format!("{}/64", pod.v6))?;
        pod.exec("ip link set eth0 up")?;
        pod.default_route(network.v4, network.v6)
    }

    /// Creates the node's end of a shared network, for the first pod.
    fn create_shared(&self, network: &Shared) -> anyhow::Result<()> {
        let interface = network.interface;
        let mut made = self.shared.lock();
        if made.contains(&interface) {
            return Ok(());
        }
        if interface == BRIDGE.interface {
            self.node
                .exec(&format!("ip link add {interface} type bridge"))?;
        } else {
            // A macvlan needs a parent with a carrier; nothing listens at its other end.
            self.node
                .exec("ip link add mac-parent type veth peer name mac-peer")?;
            self.node.exec("ip link set mac-parent up")?;
            self.node.exec("ip link set mac-peer up")?;
            self.node.exec(&format!(
                "ip link add {interface} link mac-parent type macvlan mode bridge"
            ))?;
        }
        self.node.address(
            interface,
            &format!("{}/16", network.v4),
            &format!("{}/64", network.v6),
        )?;
        self.node.exec(&format!("ip link set {interface} up"))?;
        made.push(interface);
        Ok(())
    }
}
