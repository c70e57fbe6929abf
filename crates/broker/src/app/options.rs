//! The validated options of a broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;

use crate::identity::AgentAccount;

/// The validated options of a broker.
#[derive(Debug)]
pub struct BrokerOptions {
    /// Address of the agents' port.
    pub listen: SocketAddr,
    /// Address of the admin port (metrics, health and readiness).
    pub admin_listen: SocketAddr,
    /// Address of the ledger.
    pub ledger_listen: SocketAddr,
    /// Maximum number of ledger entries.
    pub ledger_entries: usize,
    /// This replica's name.
    pub name: String,
    /// The connection to the API server.
    pub client: ClientOptions,
    /// The options of decisions.
    pub decisions: DecisionOptions,
    /// The service account and token requirements of agents.
    pub agents: AgentAccount,
    /// The source of the serving certificate.
    pub certificate: CertificateSource,
    /// Namespace and name of the certificate's Secret. Unused if the certificate comes from files.
    pub secret: (String, String),
    /// CA bundle for agents' client certificates, PEM. `None`: agents authenticate with tokens.
    pub client_ca: Option<PathBuf>,
    /// The instance metadata service of the broker's own node.
    pub metadata_addr: String,
    /// The connection to STS.
    pub sts: StsOptions,
    /// Maximum number of agent connections.
    pub connections: usize,
    /// Maximum number of unauthenticated connections per address, or per IPv6 /64.
    pub connections_per_peer: usize,
    /// The port for kiam agents. `None` disables it.
    pub kiam: Option<KiamOptions>,
    /// The time.
    pub clock: Clock,
}

/// Options of the port for kiam agents.
#[derive(Debug, Clone)]
pub struct KiamOptions {
    /// Address of the port.
    pub listen: SocketAddr,
    /// CA bundle for kiam agents' client certificates, PEM.
    pub client_ca: PathBuf,
    /// Maximum staleness of the watches at which kiam agents are still served.
    pub max_staleness: Duration,
}
