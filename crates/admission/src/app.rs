//! The process of the admission webhooks: starts every task from validated options and returns the
//! bound addresses.

mod injection;

use std::net::SocketAddr;
use std::sync::Arc;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::rule_set_builder::RuleUpdate;
use rolegate_core::workload::Change;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::WatchMetrics;
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_rules::rules::RuleStore;
use rolegate_rules::store::Report;
use rolegate_rules::{FollowMetrics, FollowOptions, Purpose, follow, from_flags};
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::supervisor::{self, Running, Service, Supervisor};
use rolegate_runtime::tls::{CertificateStore, ExpiryCollector, ServerTls};
use tracing::info;

use crate::metrics::AdmissionMetrics;
use crate::server::Webhook;
pub use injection::{InjectionOptions, RuleSource};

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
    /// The source of the rules.
    pub rule_source: RuleSource,
    /// The options of the mutating webhook. `None`: only the validating webhook is served.
    pub injection: Option<InjectionOptions>,
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

        let follower = FollowOptions {
            flags: options.rules,
            given: options.given,
            cluster_config: options.cluster_config,
            keys: options.annotations.clone(),
            purpose: Purpose::Admission,
            service_accounts: None,
        };
        let source = options.rule_source;
        let (rules, watches) = rules(source, follower, &connection, &mut metrics, supervisor);
        let mutating = options.injection.map(|injection| {
            injection.start(&connection, &rules, &watches, &mut metrics, supervisor)
        });

        let listener = listen(options.listen)?;
        let admin = listen(options.admin_listen)?;
        let addresses = Addresses {
            webhook: listener.local_addr()?,
            admin: admin.local_addr()?,
        };
        let admission_metrics = AdmissionMetrics::register(metrics.ours());
        let webhook = Webhook::new(
            rules,
            options.annotations,
            options.clock,
            admission_metrics,
            mutating,
        );
        let serving = Admin::new(Arc::new(metrics), supervisor.readiness().clone());
        let drain = supervisor.drain().clone();
        supervisor.spawn(serving.serve(admin, drain.clone()));
        supervisor.spawn(webhook.serve(listener, tls, drain));
        Ok((Self, addresses))
    }
}

/// Starts the source of rules. Also returns the metrics of watches.
fn rules(
    source: RuleSource,
    options: FollowOptions,
    connection: &Connection,
    metrics: &mut Metrics,
    supervisor: &mut Supervisor,
) -> (RuleStore, WatchMetrics) {
    match source {
        RuleSource::Cluster => {
            let metrics = FollowMetrics::register(metrics.ours(), connection);
            let follower = follow(connection, options, &metrics, supervisor);
            let rules = follower.writer.rules();
            let condition = supervisor.readiness().condition("rules");
            supervisor.spawn_required("rule store writer", follower.run(condition));
            (rules, metrics.watches)
        }
        RuleSource::Flags => {
            let watches = WatchMetrics::register(metrics.ours(), connection.freshness());
            let mut follower = from_flags(options, metrics.ours(), supervisor);
            // The injection decides by service accounts alone.
            let namespaces = RuleUpdate::Namespaces(Change::Snapshot(Vec::new()));
            follower.writer.apply(Report::Rules(namespaces));
            (follower.writer.rules(), watches)
        }
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
