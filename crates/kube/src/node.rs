//! Finds this host's Node by its addresses if no name is given.

use std::net::IpAddr;

use kube::Api;
use kube::api::{ListParams, VersionMatch};

use crate::backoff;
use crate::client::Connection;
use crate::error::{Failure, Kind};
use crate::objects::Node;

/// Page size of Node lists.
const PAGE: u32 = 500;

/// The reason why the node is unknown. All pods of the cluster must be watched then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeUnknown {
    /// The host has no usable address.
    #[error("this host has no address to find its Node by; set --node or NODE_NAME")]
    NoAddress,
    /// No Node has one of the host's addresses.
    #[error("no Node has an address of this host ({0}); set --node or NODE_NAME")]
    NotFound(String),
    /// Several Nodes have it. Anyone who can write a Node's status can claim any address.
    #[error("several Nodes have an address of this host ({0}); set --node or NODE_NAME")]
    Ambiguous(String),
    /// The API server refuses the request.
    #[error("{0}, or set --node or NODE_NAME")]
    Refused(String),
}

/// Finds the Node that has one of the host's addresses. Waits while the API server is unavailable.
pub async fn find_node(
    connection: &Connection,
    host_addresses: &[IpAddr],
) -> Result<String, NodeUnknown> {
    let ours: Vec<IpAddr> = host_addresses
        .iter()
        .map(IpAddr::to_canonical)
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect();
    if ours.is_empty() {
        return Err(NodeUnknown::NoAddress);
    }
    let mut backoff = backoff();
    let mut told = None;
    loop {
        let failure = match nodes_with(connection, &ours).await {
            Ok(found) => return choose(found, &ours),
            Err(error) => Failure::of_call(&error),
        };
        let sentence = failure.sentence("nodes");
        if matches!(
            failure.kind,
            Kind::Unauthorized | Kind::Forbidden | Kind::NotFound | Kind::Unsupported
        ) {
            return Err(NodeUnknown::Refused(sentence));
        }
        if told.replace(failure.kind) != Some(failure.kind) {
            tracing::warn!(reason = sentence, "cannot find this node's name, retrying");
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Returns the names of the Nodes that have one of these addresses.
async fn nodes_with(connection: &Connection, ours: &[IpAddr]) -> Result<Vec<String>, kube::Error> {
    let nodes = Api::<Node>::all(connection.client());
    let mut found = Vec::new();
    let mut page = ListParams {
        limit: Some(PAGE),
        resource_version: Some("0".into()),
        version_match: Some(VersionMatch::NotOlderThan),
        ..ListParams::default()
    };
    loop {
        let list = nodes.list(&page).await?;
        found.extend(
            list.items
                .into_iter()
                .filter(|node| has_one_of(node, ours))
                .filter_map(|node| node.metadata.name),
        );
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => {
                page = ListParams {
                    limit: Some(PAGE),
                    ..ListParams::default()
                }
                .continue_token(&token);
            }
            None => return Ok(found),
        }
    }
}

fn has_one_of(node: &Node, ours: &[IpAddr]) -> bool {
    let addresses = node.status.addresses.iter().flatten();
    // The list also contains host names.
    addresses
        .filter_map(|entry| entry.address.parse::<IpAddr>().ok())
        .any(|address| ours.contains(&address.to_canonical()))
}

fn choose(mut found: Vec<String>, ours: &[IpAddr]) -> Result<String, NodeUnknown> {
    let listed = || {
        ours.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match found.pop() {
        None => Err(NodeUnknown::NotFound(listed())),
        Some(node) if found.is_empty() => Ok(node),
        Some(_) => Err(NodeUnknown::Ambiguous(listed())),
    }
}
