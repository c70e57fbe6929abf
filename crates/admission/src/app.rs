//! The admission webhook's process: starts every task from validated options and returns the bound
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_rules::{FollowMetrics, FollowOptions, Purpose, follow};
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::supervisor::{self, Running, Service, Supervisor};
use rolegate_runtime::tls::{CertificateStore, ExpiryCollector, ServerTls};
use tracing::info;

use crate::metrics::AdmissionMetrics;
use crate::server::Webhook;

/// The validated options of the webhook.
#[derive(Debug)]
pub struct AdmissionOptions {
    /// Address of the webhook's port.
    pub listen: SocketAddr,
    /// Address of the admin port (metrics, health and readiness).
    pub admin_listen: SocketAddr,
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
    /// The source of the serving certificate.
    pub certificate: CertificateSource,
    /// Namespace and name of the certificate's Secret. Unused if the certificate comes from files.
    pub secret: (String, String),
    /// The time.
    pub clock: Clock,
}

/// An error that prevents the webhook from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Kubernetes client cannot be configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// TLS cannot be configured.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The address of a bound socket cannot be read.
    #[error("cannot use a listening socket")]
    Socket(#[from] std::io::Error),
}

impl supervisor::StartError for StartError {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// The bound addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The webhook's port.
    pub webhook: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
}

/// A running webhook.
pub type Admission = Running<AdmissionService>;

/// The webhook's kind of process.
#[derive(Debug)]
pub struct AdmissionService;

impl Service for AdmissionService {
    type Options = AdmissionOptions;
    type Addresses = Addresses;
    type Error = StartError;

    async fn start(
        options: AdmissionOptions,
        supervisor: &mut Supervisor,
    ) -> Result<(Self, Addresses), StartError> {
        let mut metrics = Metrics::new().with_readiness(supervisor.readiness());
        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");

        let store = Arc::new(CertificateStore::new(
            "admission",
            options.clock.clone(),
            supervisor.readiness().condition("certificate"),
        ));
        ExpiryCollector::register(metrics.ours(), vec![store.clone()]);
        let tls =
            ServerTls::new(store.clone()).map_err(|error| StartError::Tls(error.to_string()))?;
        let client = connection.client();
        let (source, (namespace, name)) = (options.certificate, options.secret);
        let readiness = supervisor.readiness().clone();
        supervisor.spawn_required("certificate source", async move {
            source
                .follow(client, &namespace, &name, &store, &readiness)
                .await;
        });

        let follow_metrics = FollowMetrics::register(metrics.ours(), &connection);
        let follower = FollowOptions {
            flags: options.rules,
            given: options.given,
            cluster_config: options.cluster_config,
            keys: options.annotations.clone(),
            purpose: Purpose::Admission,
            service_accounts: None,
        };
        let follower = follow(&connection, follower, &follow_metrics, supervisor);
        let rules = follower.writer.rules();
        let condition = supervisor.readiness().condition("rules");
        supervisor.spawn_required("rule store writer", follower.run(condition));

        let listener = listen(options.listen)?;
        let admin = listen(options.admin_listen)?;
        let addresses = Addresses {
            webhook: listener.local_addr()?,
            admin: admin.local_addr()?,
        };
        let admission_metrics = AdmissionMetrics::register(metrics.ours());
        let webhook = Webhook::new(rules, options.annotations, options.clock, admission_metrics);
        let serving = Admin::new(Arc::new(metrics), supervisor.readiness().clone());
        let drain = supervisor.drain().clone();
        supervisor.spawn(serving.serve(admin, drain.clone()));
        supervisor.spawn(webhook.serve(listener, tls, drain));
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
