//! A node with pods, out of network namespaces, so that real rules meet real packets and the
//! host's own network is left alone.
//!
//! ```text
//!  pod ── veth ──┐
//!  pod ── veth ──┤ bridge cni0      node namespace      veth      imds namespace
//!  pod ── veth ──┴────────────────  eth0 10.0.0.1  ───────────  169.254.169.254
//!  pod ── macvlan ── mac0                fd10::1                fd00:ec2::254
//! ```
//! The node forwards, and behind it somebody really holds the metadata addresses: a packet that
//! isn't redirected arrives there. Everything goes when the [`Lab`] is dropped; what a killed run
//! left behind goes when the next one starts.

mod cni;
mod netns;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};

pub use cni::{PodName, write_record};
pub use netns::{Namespace, in_netns};

/// The node's own IPv4 address.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The node's own IPv6 address.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 1);

/// Labs of this process, so that their names differ.
static LABS: AtomicUsize = AtomicUsize::new(0);

/// How a pod is joined to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodLink {
    /// A veth pair with a host route of its own, as the VPC plug-in and Calico do; the node's end
    /// is named `eni…`.
    Veth,
    /// The same, the node's end named as given.
    VethNamed(&'static str),
    /// A veth pair in the bridge `cni0`; the address is to be in 10.2.0.0/16.
    Bridge,
    /// A macvlan beside the node's own `mac0`; the address is to be in 10.3.0.0/16.
    Macvlan,
}

/// A network behind the node that several pods share.
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
    /// Its IPv6 address, made from the other one.
    pub v6: Ipv6Addr,
    /// The interface that its packets come to the node by. For shared networks that is the
    /// network's, not the pod's.
    pub interface: String,
    /// The node's end of the pod's own veth pair; the pod's macvlan has none.
    pub port: Option<String>,
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.netns
    }
}

impl Lab {
    /// A node without pods.
    ///
    /// # Errors
    /// When this isn't root, or `ip` of iproute2 is missing, with a sentence that says so.
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

    /// The node's namespace: where the agent and the rules are.
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// Where packets arrive that weren't redirected.
    pub fn imds(&self) -> &Namespace {
        &self.imds
    }

    /// A pod with the address `v4`; it goes when it is dropped.
    ///
    /// # Errors
    /// When the address is none, or not of the link's network, or `ip` fails.
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

    /// A veth pair from the pod's `eth0` to the node.
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
        // A gateway that nobody holds, but whose MAC address is known: no proxy needed.
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
            // A macvlan is made where its parent is and then moved.
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

    /// The node's end of a shared network, made for the first pod.
    fn create_shared(&self, network: &Shared) -> anyhow::Result<()> {
        let interface = network.interface;
        let mut made = self.shared.lock().unwrap_or_else(|e| e.into_inner());
        if made.contains(&interface) {
            return Ok(());
        }
        if interface == BRIDGE.interface {
            self.node
                .exec(&format!("ip link add {interface} type bridge"))?;
        } else {
            // Macvlan needs a parent with a carrier; nobody listens at its other end.
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
