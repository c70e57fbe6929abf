//! The admission webhook as a process: options in, bound addresses out, and an owner for every
//! task.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::rulebook::{ClusterConfig, Facts, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Update;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::{Reporting, WatchMetrics};
use rolegate_rules::in_force::{self, GivenRuleFlags};
use rolegate_rules::keeper::{Keeper, Point, Report};
use rolegate_rules::source::RuleSources;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::tls::{CertificateAges, CertificateStore, ServerTls};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

use crate::metrics::AdmissionMetrics;
use crate::server::Webhook;

/// Reports that may wait to be taken.
const REPORTS: usize = 256;
/// The life of a session that is only thought of: the gate makes none.
const SESSION_SECONDS: u32 = 3600;

/// Everything that shapes the webhook, validated.
#[derive(Debug)]
pub struct AdmissionOptions {
    /// The API server's port.
    pub listen: SocketAddr,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// How the API server is reached.
    pub client: ClientOptions,
    /// The annotations' keys.
    pub annotations: AnnotationKeys,
    /// The rules as far as flags fix them: they count where the cluster has no configuration.
    pub rules: RuleConfig,
    /// The flags and variables about rules that were given, by name.
    pub given: GivenRuleFlags,
    /// Whether the cluster's configuration is demanded.
    pub cluster_config: ConfigUse,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// The Secret of the certificate, unless it comes from files: namespace and name.
    pub secret: (String, String),
    /// The time.
    pub clock: Clock,
}

/// Why the webhook cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The API server cannot be reached as configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// A bound socket does not say where.
    #[error("a listening socket cannot be used")]
    Socket(#[from] std::io::Error),
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The API server's port.
    pub webhook: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
}

/// A task's end: one that the webhook cannot do without names itself.
type TaskEnd = Option<&'static str>;

/// A running webhook. Dropping it aborts everything; [`Admission::stop`] ends it in order.
#[derive(Debug)]
pub struct Admission {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    tasks: JoinSet<TaskEnd>,
}

impl Admission {
    /// Starts it; returns when it listens. What it needs and cannot have yet it goes on asking
    /// for, and says so in its readiness.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: AdmissionOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");
        let watch_metrics = WatchMetrics::register(metrics.ours(), connection.pictures());

        let store = Arc::new(CertificateStore::new(
            "admission",
            options.clock.clone(),
            readiness.condition("certificate"),
        ));
        CertificateAges::register(metrics.ours(), vec![store.clone()]);
        let tls =
            ServerTls::new(store.clone()).map_err(|error| StartError::Tls(error.to_string()))?;
        let client = connection.client();
        let (source, (namespace, name)) = (options.certificate, options.secret);
        let ready = readiness.clone();
        tasks.spawn(vital("the certificate's source", async move {
            source
                .follow(client, &namespace, &name, &store, &ready)
                .await;
        }));

        let mut keeper = Keeper::new(
            options.rules,
            Point::Gate,
            SessionScope::Workload,
            SESSION_SECONDS,
        );
        // Roles of the node are not found out here: those that the configuration names are known.
        keeper.learn(Facts::default());
        if options.cluster_config != ConfigUse::Off {
            keeper.apply(Report::Rules(RuleUpdate::Config(ClusterConfig::Unseen)));
        }
        let rules = keeper.rules();
        rolegate_rules::metrics::register(metrics.ours(), rules.clone());
        let reporting = in_force::report(rules.clone(), options.given, None);
        tasks.spawn(passing(reporting));
        let (reporter, reports) = mpsc::channel(REPORTS);
        let (sender, namespaces) = mpsc::channel(REPORTS);
        let sources = RuleSources {
            connection: connection.clone(),
            cluster_config: options.cluster_config,
            metrics: watch_metrics.clone(),
            readiness: readiness.clone(),
            reports: reporter,
        };
        tasks.spawn(vital("the watches of rules", sources.run(rules.clone())));
        let reporting = Reporting {
            metrics: watch_metrics,
            condition: readiness.condition("namespaces"),
        };
        let (keys, needs) = (options.annotations.clone(), rules.needs());
        tasks.spawn(vital("the watch of namespaces", async move {
            watch_namespaces(&connection, keys, needs, reporting, sender).await;
        }));
        tasks.spawn(vital(
            "the keeper of the rules",
            keep(keeper, reports, namespaces, readiness.clone()),
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

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Whether it is ready, and why not.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Returns when it ends by itself, which is a fault: the name of the task that ended.
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

    /// Ends it in order: takes nothing new, finishes what is open, up to `deadline`.
    pub async fn stop(mut self, deadline: Duration) {
        self.drain.drain(deadline).await;
        self.tasks.shutdown().await;
    }
}

/// Follows the sources until they end.
async fn keep(
    mut keeper: Keeper,
    mut reports: mpsc::Receiver<Report>,
    mut namespaces: mpsc::Receiver<Update>,
    readiness: Readiness,
) {
    let ready = readiness.condition("rules");
    loop {
        match (keeper.unseen(), keeper.missing()) {
            (Some(unseen), _) => ready.fail(unseen),
            // It answers, and refuses with this sentence: without it in the Service's endpoints
            // users would hear that a webhook cannot be called.
            (None, Some(missing)) => ready.note(&*missing),
            (None, None) => ready.ok(),
        }
        let report = tokio::select! {
            report = reports.recv() => report,
            update = namespaces.recv() => match update {
                Some(Update::Namespaces(change)) => {
                    Some(Report::Rules(RuleUpdate::Namespaces(change)))
                }
                Some(Update::RetainNamespaces(names)) => {
                    Some(Report::Rules(RuleUpdate::RetainNamespaces(names)))
                }
                Some(Update::Workloads(_) | Update::RetainWorkloads(_)) => continue,
                None => None,
            },
        };
        let Some(report) = report else { return };
        keeper.apply(report);
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
