//! The validated options of a broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rolegate_aws::sts::StsOptions;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_rules::{FollowOptions, Purpose};
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
    /// The annotation keys.
    pub annotations: AnnotationKeys,
    /// The rules set by flags. They apply unless the cluster has a configuration.
    pub rules: RuleConfig,
    /// The names of the rule flags and variables that were given.
    pub given: GivenRuleFlags,
    /// The use of the cluster's configuration.
    pub cluster_config: ConfigMode,
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
    /// `true` if decisions wait until a base ARN is known.
    pub base_required: bool,
    /// The workloads that share a session.
    pub scope: SessionScope,
    /// The session duration requested from STS, in seconds.
    pub session_seconds: u32,
    /// Limits of the session engine.
    pub engine: EngineOptions,
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

impl BrokerOptions {
    /// Returns the rules to follow.
    pub(super) fn rules(&self) -> FollowOptions {
        FollowOptions {
            flags: self.rules.clone(),
            given: self.given.clone(),
            cluster_config: self.cluster_config,
            keys: self.annotations.clone(),
            purpose: Purpose::Credentials {
                scope: self.scope,
                session_seconds: self.session_seconds,
            },
        }
    }
}
