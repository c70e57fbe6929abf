//! The agent's end of the broker's protocol: with a broker, an agent has no rights of its own.
//!
//! [`link`] is one stream and shows the [`token`], [`links`] keeps two of them, one to serve by and a
//! warm one beside it, and [`follower`] writes what the broker says into the picture that doors read.

mod age;
mod follower;
mod link;
mod links;
mod token;

use std::path::PathBuf;
use std::time::Duration;

use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;

pub(crate) use age::BrokerAge;
pub(crate) use follower::{Follower, FollowerParts};

/// How the broker is reached, and how the agent proves who it is.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Host of the broker's Service; with several addresses streams go to different ones.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The authorities of the broker's certificate, PEM; read for each connection.
    pub ca: PathBuf,
    /// What the agent shows.
    pub proof: Proof,
    /// `metadata.name` of this node.
    pub node: String,
    /// For how long the broker may hear nothing of the cluster while another one does.
    pub stale: Duration,
    /// The time that certificates are checked by.
    pub clock: Clock,
}

/// What an agent shows to the broker.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A file with a token of its service account, which the kubelet keeps new.
    Token(PathBuf),
    /// A client certificate that names the node.
    Certificate(TlsFiles),
}
