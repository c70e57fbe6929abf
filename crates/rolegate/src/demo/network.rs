//! How the demo's pods reach the metadata address: from network namespaces through a real
//! redirect, or from loopback addresses to the agent's port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use rolegate_agent::redirect::Choice;
use rolegate_core::redirect::METADATA_V4;
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};

use super::cast::Pod;
use super::netns::{self, Namespaces};

/// The agent's port where the node has a network of its own.
pub(super) const AGENT_PORT: u16 = 8181;

/// The network of the demo's node.
#[derive(Debug)]
pub(super) enum Network {
    /// This machine's: pods are addresses of 127.0.0.0/8.
    Loopback,
    /// Namespaces of its own, for the node and each pod.
    Namespaces(Namespaces),
}

/// The network, and the threads of everything that runs on the node.
#[derive(Debug)]
pub(super) struct Node {
    /// Its threads, which must end before the network can.
    pub(super) runtime: Runtime,
    /// Its network.
    pub(super) network: Network,
}

impl Node {
    /// A node on this machine's loopback interface.
    ///
    /// # Errors
    /// When no threads can be started.
    pub(super) fn on_loopback() -> anyhow::Result<Self> {
        Ok(Self {
            runtime: runtime()?,
            network: Network::Loopback,
        })
    }

    /// A node of network namespaces, where the rules of a redirect can be set.
    ///
    /// # Errors
    /// When there is no right to make namespaces, or a program is missing.
    pub(super) fn in_namespaces() -> anyhow::Result<Self> {
        let namespaces = Namespaces::create()?;
        // Threads belong where the one that started them was.
        let node = Self {
            runtime: netns::within(&namespaces.node(), runtime)?,
            network: Network::Namespaces(namespaces),
        };
        let interfaces = netns::POD_INTERFACES.parse()?;
        let spec = crate::redirect::spec(
            Some(netns::NODE_ADDRESS.into()),
            None,
            AGENT_PORT,
            interfaces,
        )?;
        let probe = node
            .runtime
            .spawn(async move { Choice::Auto.resolve(&spec).await });
        node.runtime
            .block_on(probe)?
            .context("no redirect is possible")?;
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
    /// What it is, in one word.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Namespaces(_) => "namespaces",
        }
    }

    /// Where the metadata stand-in listens.
    pub(super) fn metadata(&self) -> SocketAddr {
        match self {
            Self::Loopback => (Ipv4Addr::LOCALHOST, 0).into(),
            Self::Namespaces(_) => (METADATA_V4, 80).into(),
        }
    }

    /// A pod's address.
    pub(super) fn address(&self, pod: &Pod) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::new(127, 1, 0, pod.number),
            Self::Namespaces(_) => netns::address(pod),
        }
    }

    /// A socket of a pod's.
    ///
    /// # Errors
    /// When the kernel gives none.
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

    /// `curl` as it is typed inside the pod.
    pub(super) fn curl(&self, pod: &Pod) -> String {
        match self {
            Self::Loopback => format!("curl --interface {} ", self.address(pod)),
            Self::Namespaces(_) => "curl ".into(),
        }
    }

    /// What leads a command into the pod.
    pub(super) fn pod_prefix(&self, pod: &Pod) -> String {
        match self {
            Self::Loopback => String::new(),
            Self::Namespaces(all) => format!("ip netns exec {} ", all.pod(pod)),
        }
    }

    /// What leads a command onto the node.
    pub(super) fn node_prefix(&self) -> String {
        match self {
            Self::Loopback => String::new(),
            Self::Namespaces(all) => format!("ip netns exec {} ", all.node()),
        }
    }
}
