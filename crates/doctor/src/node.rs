//! The examination of a node, run on it as root: the redirect, its pods, and the agent.

mod checks;
mod facts;
mod gather;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::Limits;
use crate::check::run;
use crate::report::Report;

/// The places on a node that are examined.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The directory of pods' network namespaces.
    pub netns_dir: PathBuf,
    /// The directory of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// The directory in which the container runtime records the addresses of pods.
    pub cni_results_dir: PathBuf,
    /// The address of the agent's metrics and health.
    pub metrics_address: SocketAddr,
    /// The address of the node's metadata service.
    pub metadata_address: String,
    /// The limits.
    pub limits: Limits,
}

/// Examines this node. What cannot be read is a check that is not evaluated.
pub async fn examine(options: &NodeOptions) -> Report {
    let facts = gather::gather(options).await;
    let subject = match &facts.host {
        Some(host) => format!("node {host}"),
        None => "this node".to_owned(),
    };
    Report::new(subject, run(table::CHECKS, &facts))
}
