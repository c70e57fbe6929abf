//! The route of the demo's pods to the metadata address: from network namespaces through a real
//! redirect, or from loopback addresses to the agent's port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use rolegate_redirect::Choice;
use rolegate_redirect::rules::{METADATA_V4, Spec};
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};

use super::netns::{self, Namespaces};
use super::pods::Pod;

/// The agent's port on a node with its own network.
pub(super) const AGENT_PORT: u16 = 8181;

/// The network of the demo's node.
#[derive(Debug)]
pub(super) enum Network {
    /// This machine's network: pods are addresses of 127.0.0.0/8.
    Loopback,
    /// Namespaces for the node and each pod.
    Namespaces(Namespaces),
}

/// The network, and the threads of all processes on the node.
#[derive(Debug)]
pub(super) struct Node {
    /// Its threads, which must exit before the network is removed.
    pub(super) runtime: Runtime,
    /// Its network.
    pub(super) network: Network,
}

impl Node {
    /// Creates a node on this machine's loopback interface.
    ///
    /// # Errors
    /// Returns an error if threads cannot be started.
    pub(super) fn on_loopback() -> anyhow::Result<Self> {
        Ok(Self {
            runtime: runtime()?,
            network: Network::Loopback,
        })
    }

    /// Creates a node of network namespaces, in which redirect rules can be installed.
    ///
    /// # Errors
    /// Returns an error without the permission to create namespaces, or without a required program.
    pub(super) fn in_namespaces() -> anyhow::Result<Self> {
        let namespaces = Namespaces::create()?;
        // A thread is in the namespace of the thread that started it.
        let node = Self {
            runtime: netns::within(&namespaces.node(), runtime)?,
            network: Network::Namespaces(namespaces),
        };
        let interfaces = netns::POD_INTERFACES.parse()?;
        let spec = Spec::new(Some(netns::NODE_ADDRESS), None, AGENT_PORT, interfaces)?;
        let probe = node
            .runtime
            .spawn(async move { Choice::Auto.resolve(&spec).await });
        node.runtime
            .block_on(probe)?
            .context("cannot install a redirect")?;
        Ok(node)
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

impl Network {
    /// Returns the kind of network in one word.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Namespaces(_) => "namespaces",
        }
    }

    /// Returns the address of the metadata stand-in.
    pub(super) fn metadata(&self) -> SocketAddr {
        match self {
            Self::Loopback => (Ipv4Addr::LOCALHOST, 0).into(),
            Self::Namespaces(_) => (METADATA_V4, 80).into(),
        }
    }

    /// Returns a pod's address.
    pub(super) fn address(&self, pod: &Pod) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::new(127, 1, 0, pod.number),
            Self::Namespaces(_) => netns::address(pod),
        }
    }

    /// Creates a socket of a pod.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot create it.
    pub(super) fn socket(&self, pod: &Pod) -> io::Result<TcpSocket> {
        match self {
            Self::Loopback => {
                let socket = TcpSocket::new_v4()?;
                socket.bind((self.address(pod), 0).into())?;
                Ok(socket)
            }
            Self::Namespaces(all) => netns::within(&all.pod(pod), TcpSocket::new_v4),
        }
    }

    /// Returns the `curl` command to type inside the pod.
    pub(super) fn curl(&self, pod: &Pod) -> String {
        match self {
            Self::Loopback => format!("curl --interface {} ", self.address(pod)),
            Self::Namespaces(_) => "curl ".into(),
        }
    }

    /// Returns the prefix that runs a command in the pod.
    pub(super) fn pod_prefix(&self, pod: &Pod) -> String {
        match self {
            Self::Loopback => String::new(),
            Self::Namespaces(all) => format!("ip netns exec {} ", all.pod(pod)),
        }
    }

    /// Returns the prefix that runs a command on the node.
    pub(super) fn node_prefix(&self) -> String {
        match self {
            Self::Loopback => String::new(),
            Self::Namespaces(all) => format!("ip netns exec {} ", all.node()),
        }
    }
}
