//! The broker process: starts every task from validated options and returns the bound addresses.

mod decisions;
mod options;
mod ports;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_kube::client::{ClientError, Connection};
use rolegate_runtime::admin::Admin;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::supervisor::{self, Running, Service, Supervisor};
use tracing::info;

use crate::metrics::BrokerMetrics;
use decisions::Decisions;
pub use options::{BrokerOptions, KiamOptions};
use ports::Ports;
use tls::BrokerTls;

/// An error that prevents the broker from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Kubernetes client cannot be configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The metadata service's address is malformed.
    #[error("--metadata-addr: {0}")]
    Imds(#[from] ImdsError),
    /// TLS cannot be configured.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The address of a bound socket cannot be read.
    #[error("cannot use a listening socket")]
    Socket(#[from] std::io::Error),
}

impl supervisor::StartError for StartError {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Client(_) | Self::Imds(_))
    }
}

/// The bound addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The agents' port.
    pub agents: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
    /// The ledger's port.
    pub ledger: SocketAddr,
    /// The port for kiam agents, if enabled.
    pub kiam: Option<SocketAddr>,
}

/// A running broker. Its stop asks agents to reconnect elsewhere.
pub type Broker = Running<BrokerService>;

/// The broker's kind of process.
#[derive(Debug)]
pub struct BrokerService;

impl Service for BrokerService {
    type Options = BrokerOptions;
    type Addresses = Addresses;
    type Error = StartError;

    async fn start(
        options: BrokerOptions,
        supervisor: &mut Supervisor,
    ) -> Result<(Self, Addresses), StartError> {
        let mut metrics = Metrics::new().with_readiness(supervisor.readiness());
        let broker_metrics = BrokerMetrics::register(metrics.ours());
        let imds = Imds::new(&options.metadata_addr)?;
        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");

        let decisions = Decisions::start(
            &options,
            (&connection, imds),
            &broker_metrics,
            metrics.ours(),
            supervisor,
        );
        let tls = BrokerTls::start(&options, connection.client(), metrics.ours(), supervisor);
        let ledger = Ledger::new(options.ledger_entries);
        let mut ports = Ports {
            recorder: OutcomeRecorder::new(Some(decisions.events()), ledger.clone()),
            options: &options,
            connection: &connection,
            decisions: &decisions,
            tls: &tls,
            metrics: broker_metrics,
            supervisor,
        };
        let kiam = ports.serve_kiam()?;
        let agents = ports.serve_agents()?;

        let admin = listen(options.admin_listen)?;
        let ledger_listener = listen(options.ledger_listen)?;
        let addresses = Addresses {
            agents,
            admin: admin.local_addr()?,
            ledger: ledger_listener.local_addr()?,
            kiam,
        };
        let drain = supervisor.drain().clone();
        let serving = Admin::new(Arc::new(metrics), supervisor.readiness().clone());
        supervisor.spawn(serving.serve(admin, drain.clone()));
        supervisor.spawn(crate::ledger_server::serve(ledger, ledger_listener, drain));
        Ok((Self, addresses))
    }
}

#[cfg(test)]
mod tests {
    use rolegate_runtime::supervisor::StartError as _;

    use super::*;

    #[test]
    fn only_errors_of_flags_are_usage_errors() {
        assert!(StartError::Client(ClientError::TokenWithoutServer).is_usage());
        assert!(!StartError::Tls(String::new()).is_usage());
    }
}
