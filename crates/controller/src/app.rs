//! The controller's process: starts every task from validated options and returns the bound
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::events::recorder_as;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::WatchMetrics;
use rolegate_rules::metrics::CurrentRules;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{ListenError, listen};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::certificates::{CertificateMetrics, Certificates, SelfSigned};
use crate::leader_task::{self, LeaderTask};
use crate::lease::{Leadership, LeaseOptions, LeaseTiming};
use crate::rules::{RuleOptions, StatusTask};

/// The Lease's name.
const LEASE: &str = "rolegate-controller";

/// The validated options of a controller.
#[derive(Debug)]
pub struct ControllerOptions {
    /// The connection to the API server.
    pub client: ClientOptions,
    /// The Lease's namespace.
    pub namespace: String,
    /// The identity of this replica, unique for each process.
    pub identity: String,
    /// Address of the admin port (metrics, health and readiness).
    pub admin_listen: SocketAddr,
    /// The timing of leader election.
    pub lease: LeaseTiming,
    /// The source of the webhook's certificate. The controller issues self-signed ones only.
    pub certificates: CertificateSource,
    /// Options of the webhook's self-signed certificate.
    pub self_signed: SelfSigned,
    /// Options of the brokers' certificate. `None`: the controller does not issue it.
    pub broker: Option<SelfSigned>,
    /// Options of the status task. `None` disables it.
    pub rules: Option<RuleOptions>,
    /// The time.
    pub clock: Clock,
}

/// An error that prevents the controller from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Kubernetes client cannot be configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The address of a bound socket cannot be read.
    #[error("cannot use the admin port")]
    Socket(#[from] std::io::Error),
}

impl StartError {
    /// Returns `true` if other flags or files are needed, so that a retry would not help.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// The bound addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The admin port.
    pub admin: SocketAddr,
}

/// A required task has exited, which is always a bug. Holds the task's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// The result of a task: [`Broken`] if the controller cannot continue without it.
type TaskEnd = Option<Broken>;

/// A running controller. Dropping it aborts all tasks; [`Controller::stop`] shuts it down
/// gracefully.
#[derive(Debug)]
pub struct Controller {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    stop: CancellationToken,
    tasks: JoinSet<TaskEnd>,
}

impl Controller {
    /// Starts a controller and returns once its port is open. While the API server is unavailable
    /// it retries, and readiness reports that.
    ///
    /// # Errors
    /// Returns [`StartError`] if the options cannot be used.
    pub async fn start(options: ControllerOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let stop = CancellationToken::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let connection = Connection::new(&options.client).await?;

        // Further tasks that exactly one replica must do are added here.
        let mut leader_tasks: Vec<Arc<dyn LeaderTask>> = Vec::new();
        let certificate_metrics = CertificateMetrics::register(metrics.ours());
        let webhook = matches!(options.certificates, CertificateSource::SelfSigned);
        let webhook = webhook.then_some(("certificates", options.self_signed));
        let broker = options.broker.map(|broker| ("broker certificates", broker));
        for (condition, options_of_it) in webhook.into_iter().chain(broker) {
            leader_tasks.push(Arc::new(Certificates::new(
                options_of_it,
                connection.client(),
                options.clock.clone(),
                readiness.condition(condition),
                certificate_metrics.clone(),
            )));
        }

        if let Some(rules) = options.rules {
            let current = CurrentRules::default();
            current.register(metrics.ours());
            let watches = WatchMetrics::register(metrics.ours(), connection.freshness());
            let (events, writer) = recorder_as(
                "rolegate-controller",
                connection.client(),
                options.identity.clone(),
                metrics.ours(),
            );
            tasks.spawn(async move {
                writer.run().await;
                Some(Broken("Event writer"))
            });
            leader_tasks.push(Arc::new(StatusTask::new(
                rules,
                connection.clone(),
                watches,
                current,
                readiness.clone(),
                events,
                options.clock.clone(),
            )));
        }

        let leads = Gauge::default();
        metrics.ours().register(
            "leader_election_status",
            "Whether this replica is the leader: 1 if so, otherwise 0",
            leads.clone(),
        );
        let lease = LeaseOptions {
            namespace: options.namespace,
            name: LEASE.into(),
            identity: options.identity,
            timing: options.lease,
        };
        let leadership = Leadership::new(lease, options.clock, readiness.condition("lease"), leads);
        let listener = listen(options.admin_listen)?;
        let addresses = Addresses {
            admin: listener.local_addr()?,
        };
        let (client, stopped) = (connection.client(), stop.clone());
        tasks.spawn(async move {
            let work = move |leading| leader_task::run_all(leader_tasks.clone(), leading);
            leadership.run(client, stopped.clone(), work).await;
            (!stopped.is_cancelled()).then_some(Broken("leader election"))
        });
        let admin = Admin::new(Arc::new(metrics), readiness.clone());
        let serving = admin.serve(listener, drain.clone());
        tasks.spawn(async move {
            serving.await;
            None
        });
        Ok(Self {
            addresses,
            readiness,
            drain,
            stop,
            tasks,
        })
    }

    /// Returns the bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns the controller's readiness. A replica that is not the leader is ready too.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Waits until a required task exits.
    pub async fn ended(&mut self) -> Broken {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(broken))) => return broken,
                Some(Ok(None)) => {}
                Some(Err(_)) => return Broken("a task"),
                None => std::future::pending().await,
            }
        }
    }

    /// Shuts down gracefully, up to `deadline`: stops the leader's tasks, releases the Lease so
    /// that another replica can lead at once, then closes the port.
    pub async fn stop(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.stop.cancel();
        // The port is still open: liveness probes succeed while the Lease is released.
        let elected =
            async { while self.tasks.len() > 1 && self.tasks.join_next().await.is_some() {} };
        if timeout_at(until, elected).await.is_err() {
            tracing::warn!("shutdown timed out, the lease may not be released");
        }
        let left = until.saturating_duration_since(Instant::now());
        self.drain.drain(left).await;
        self.tasks.shutdown().await;
    }
}
