//! Which node this is, found by the host's addresses where nobody says so.

use std::net::IpAddr;

use kube::Api;
use kube::api::{ListParams, VersionMatch};

use crate::backoff;
use crate::client::Connection;
use crate::failure::{Failure, Kind};
use crate::objects::Node;

/// Nodes asked for at once.
const PAGE: u32 = 500;

/// Why the node isn't known. All pods of the cluster must be watched then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeUnknown {
    /// No address to look for.
    #[error("this host has no address by which its Node could be found; give --node or NODE_NAME")]
    NoAddress,
    /// No Node has one of them.
    #[error("no Node has an address of this host ({0}); give --node or NODE_NAME")]
    NotFound(String),
    /// Whoever may write a Node's status can claim any address.
    #[error("several Nodes claim an address of this host ({0}); give --node or NODE_NAME")]
    Ambiguous(String),
    /// The API server won't tell.
    #[error("{0}, or give --node or NODE_NAME")]
    Refused(String),
}

/// Finds the Node that has one of the host's addresses. Waits as long as the API server is away.
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
    let mut waits = backoff();
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
        if let Some(wait) = waits.next() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The names of the Nodes that have one of these addresses.
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
    // Host names stand among them and are no addresses.
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
