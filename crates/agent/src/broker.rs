//! The agent's side of the broker protocol. With a broker, an agent has no permissions of its own.
//!
//! `stream` is one stream and sends the `token`, `stream_pair` maintains an active and a
//! standby stream, and `sync` applies the broker's messages to the pod table.

mod stream;
mod stream_pair;
mod sync;
mod token;

use std::path::PathBuf;
use std::time::Duration;

use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;

pub(crate) use sync::{BrokerSync, BrokerSyncParts};

/// The address of the broker, and the agent's credentials for it.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Host of the broker's Service. If it has several addresses, streams use different ones.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// CA certificates (PEM) for the broker's certificate, reloaded for each connection.
    pub ca: PathBuf,
    /// The agent's credentials.
    pub proof: ClientAuth,
    /// `metadata.name` of this node.
    pub node: String,
    /// Maximum staleness of the broker's cluster state while another broker's is fresh.
    pub stale: Duration,
    /// The clock for certificate validation.
    pub clock: Clock,
}

/// The credentials of an agent for the broker.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// A file with a token of its service account, which the kubelet renews.
    Token(PathBuf),
    /// A client certificate that names the node.
    Certificate(TlsFiles),
}
