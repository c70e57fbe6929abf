//! The admission webhook's process: starts every task from validated options and returns the bound
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::rule_set_builder::{ClusterConfig, Facts, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Update;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_rules::in_force::{self, GivenRuleFlags};
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_rules::watches::RuleWatches;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::tls::{CertificateStore, ExpiryCollector, ServerTls};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

use crate::metrics::AdmissionMetrics;
use crate::server::Webhook;

/// Capacity of the channel of rule reports.
const REPORT_QUEUE_SIZE: usize = 256;
/// The session duration used in decisions. The webhook creates no sessions.
const SESSION_SECONDS: u32 = 3600;

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

/// The bound addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The webhook's port.
    pub webhook: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
}

/// The result of a task: the task's name if the webhook cannot continue without it.
type TaskEnd = Option<&'static str>;

/// A running webhook. Dropping it aborts all tasks; [`Admission::stop`] shuts it down gracefully.
#[derive(Debug)]
pub struct Admission {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    tasks: JoinSet<TaskEnd>,
}

impl Admission {
    /// Starts the webhook and returns once its ports are open. Dependencies that are not available
    /// yet are retried, and readiness reports them.
    ///
    /// # Errors
    /// Returns [`StartError`] if the options cannot be used.
    pub async fn start(options: AdmissionOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");
        let watch_metrics = WatchMetrics::register(metrics.ours(), connection.freshness());

        let store = Arc::new(CertificateStore::new(
            "admission",
            options.clock.clone(),
            readiness.condition("certificate"),
        ));
        ExpiryCollector::register(metrics.ours(), vec![store.clone()]);
        let tls =
            ServerTls::new(store.clone()).map_err(|error| StartError::Tls(error.to_string()))?;
        let client = connection.client();
        let (source, (namespace, name)) = (options.certificate, options.secret);
        let ready = readiness.clone();
        tasks.spawn(vital("certificate source", async move {
            source
                .follow(client, &namespace, &name, &store, &ready)
                .await;
        }));

        let mut writer = RuleStoreWriter::new(
            options.rules,
            EnforcementPoint::Admission,
            SessionScope::Workload,
            SESSION_SECONDS,
        );
        // The node's own roles are not detected here: those in the configuration are known.
        writer.learn(Facts::default());
        if options.cluster_config != ConfigMode::Off {
            writer.apply(Report::RuleStore(RuleUpdate::Config(ClusterConfig::Unseen)));
        }
        let rules = writer.rules();
        rolegate_rules::metrics::register(metrics.ours(), rules.clone());
        let reporting = in_force::report(rules.clone(), options.given, None);
        tasks.spawn(passing(reporting));
        let (reporter, reports) = mpsc::channel(REPORT_QUEUE_SIZE);
        let (sender, namespaces) = mpsc::channel(REPORT_QUEUE_SIZE);
        let sources = RuleWatches {
            connection: connection.clone(),
            cluster_config: options.cluster_config,
            metrics: watch_metrics.clone(),
            readiness: readiness.clone(),
            reports: reporter,
        };
        tasks.spawn(vital("rule watches", sources.run(rules.clone())));
        let reporting = WatchObserver {
            metrics: watch_metrics,
            condition: readiness.condition("namespaces"),
        };
        let (keys, needs) = (options.annotations.clone(), rules.needs());
        tasks.spawn(vital("namespace watch", async move {
            watch_namespaces(&connection, keys, needs, reporting, sender).await;
        }));
        tasks.spawn(vital(
            "rule store writer",
            keep(writer, reports, namespaces, readiness.clone()),
        ));

        let listener = listen(options.listen)?;
        let admin = listen(options.admin_listen)?;
        let addresses = Addresses {
            webhook: listener.local_addr()?,
            admin: admin.local_addr()?,
        };
        let admission_metrics = AdmissionMetrics::register(metrics.ours());
        let webhook = Webhook::new(rules, options.annotations, options.clock, admission_metrics);
        let serving = Admin::new(Arc::new(metrics), readiness.clone());
        tasks.spawn(passing(serving.serve(admin, drain.clone())));
        tasks.spawn(passing(webhook.serve(listener, tls, drain.clone())));
        Ok(Self {
            addresses,
            readiness,
            drain,
            tasks,
        })
    }

    /// Returns the bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns the webhook's readiness.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Waits until a required task exits, which is always a bug, and returns the task's name.
    pub async fn ended(&mut self) -> &'static str {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(task))) => return task,
                Some(Ok(None)) => {}
                Some(Err(_)) => return "a task",
                None => std::future::pending().await,
            }
        }
    }

    /// Shuts down gracefully: accepts no new connections and waits up to `deadline` for open
    /// requests.
    pub async fn stop(mut self, deadline: Duration) {
        self.drain.drain(deadline).await;
        self.tasks.shutdown().await;
    }
}

/// Processes the sources until they end.
async fn keep(
    mut writer: RuleStoreWriter,
    mut reports: mpsc::Receiver<Report>,
    mut namespaces: mpsc::Receiver<Update>,
    readiness: Readiness,
) {
    let ready = readiness.condition("rules");
    loop {
        match (writer.unseen(), writer.missing()) {
            (Some(unseen), _) => ready.fail(unseen.as_str()),
            // The webhook responds and denies with this message. If the Service had no ready
            // endpoint, users would only learn that the webhook cannot be called.
            (None, Some(missing)) => ready.note(&*missing),
            (None, None) => ready.ok(),
        }
        let report = tokio::select! {
            report = reports.recv() => report,
            update = namespaces.recv() => match update {
                Some(Update::Namespaces(change)) => {
                    Some(Report::RuleStore(RuleUpdate::Namespaces(change)))
                }
                Some(Update::RetainNamespaces(names)) => {
                    Some(Report::RuleStore(RuleUpdate::RetainNamespaces(names)))
                }
                Some(Update::Workloads(_) | Update::RetainWorkloads(_)) => continue,
                None => None,
            },
        };
        let Some(report) = report else { return };
        writer.apply(report);
    }
}

async fn vital(name: &'static str, task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    Some(name)
}

async fn passing(task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    None
}
