//! The name and addresses of a node.

use std::net::Ipv4Addr;

use anyhow::ensure;

/// The name and addresses of a node.
#[derive(Debug, Clone)]
pub(super) struct NodeSpec {
    /// Its name in Kubernetes.
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    /// The range of its pods' addresses.
    pub(super) pods: String,
}

impl NodeSpec {
    /// Returns the name and addresses of the node with this number, from 1. Its pods have a range
    /// with this prefix length.
    pub(super) fn new(number: u8, prefix: u8) -> anyhow::Result<Self> {
        ensure!(
            (24..30).contains(&prefix),
            "pods need a range of /24 to /29"
        );
        ensure!(
            (1..200).contains(&number),
            "a cluster has 199 nodes at most"
        );
        Ok(Self {
            name: format!("node-{number}"),
            address: Ipv4Addr::new(192, 168, 50, 10 + number),
            pods: format!("10.244.{number}.0/{prefix}"),
        })
    }
}
