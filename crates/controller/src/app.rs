//! The controller's process: starts every task from validated options and returns the bound
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::names;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::events::recorder_as;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_rules::FollowMetrics;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::supervisor::{self, Running, Service, Supervisor};

use crate::certificates::{CertificateMetrics, Certificates, SelfSigned};
use crate::leader_task::{self, LeaderTask};
use crate::lease::{Leadership, LeaseOptions, LeaseTiming};
use crate::rules::{RuleOptions, StatusTask};
use crate::startup_taint::{StartupTaint, StartupTaintMetrics, StartupTaintOptions};

/// The validated options of a controller.
#[derive(Debug)]
pub struct ControllerOptions {
    /// The connection to the API server.
    pub client: ClientOptions,
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub lease_name: String,
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
    /// Options of the task that removes startup taints. `None` disables it.
    pub startup_taint: Option<StartupTaintOptions>,
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

impl supervisor::StartError for StartError {
    fn is_usage(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// The bound addresses.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The admin port.
    pub admin: SocketAddr,
}

/// A running controller. A replica that is not the leader is ready too. Its stop ends the leader's
/// tasks and releases the Lease, so that another replica can lead at once.
pub type Controller = Running<ControllerService>;

/// The controller's kind of process.
#[derive(Debug)]
pub struct ControllerService;

impl Service for ControllerService {
    type Options = ControllerOptions;
    type Addresses = Addresses;
    type Error = StartError;

    async fn start(
        mut options: ControllerOptions,
        supervisor: &mut Supervisor,
    ) -> Result<(Self, Addresses), StartError> {
        let mut metrics = Metrics::new().with_readiness(supervisor.readiness());
        let connection = Connection::new(&options.client).await?;

        let leader_tasks = leader_tasks(&mut options, &connection, metrics.ours(), supervisor);
        let leads = Gauge::default();
        metrics.ours().register(
            "leader_election_status",
            "Whether this replica is the leader: 1 if so, otherwise 0",
            leads.clone(),
        );
        let lease = LeaseOptions {
            namespace: options.namespace,
            name: options.lease_name,
            identity: options.identity,
            timing: options.lease,
        };
        let condition = supervisor.readiness().condition("lease");
        let leadership = Leadership::new(lease, options.clock, condition, leads);
        let listener = listen(options.admin_listen)?;
        let addresses = Addresses {
            admin: listener.local_addr()?,
        };
        let (client, stopping) = (connection.client(), supervisor.stopping().clone());
        supervisor.spawn_graceful("leader election", async move {
            let work = move |leading| leader_task::run_all(leader_tasks.clone(), leading);
            leadership.run(client, stopping, work).await;
        });
        let admin = Admin::new(Arc::new(metrics), supervisor.readiness().clone());
        supervisor.spawn(admin.serve(listener, supervisor.drain().clone()));
        Ok((Self, addresses))
    }
}

/// Creates the tasks that exactly one replica does. Each further task is one line of the list.
fn leader_tasks(
    options: &mut ControllerOptions,
    connection: &Connection,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> Vec<Arc<dyn LeaderTask>> {
    let metrics = CertificateMetrics::register(registry);
    let webhook = match options.certificates {
        CertificateSource::SelfSigned => Some(options.self_signed.clone()),
        CertificateSource::CertManager | CertificateSource::Files(_) => None,
    };
    let broker = options.broker.take();
    let certificates = |condition, self_signed| {
        Certificates::new(
            self_signed,
            connection.client(),
            options.clock.clone(),
            supervisor.readiness().condition(condition),
            metrics.clone(),
        )
    };
    let leader_tasks = [
        task(webhook.map(|webhook| certificates("certificates", webhook))),
        task(broker.map(|broker| certificates("broker certificates", broker))),
        task(status(options, connection, registry, supervisor)),
        task(startup_taint(options, connection, registry, supervisor)),
    ];
    leader_tasks.into_iter().flatten().collect()
}

/// Creates the task that removes startup taints, if nodes have one.
fn startup_taint(
    options: &mut ControllerOptions,
    connection: &Connection,
    registry: &mut Registry,
    supervisor: &Supervisor,
) -> Option<StartupTaint> {
    let options = options.startup_taint.take()?;
    let metrics = StartupTaintMetrics::register(registry);
    let condition = supervisor.readiness().condition("startup taint");
    let client = connection.client();
    Some(StartupTaint::new(options, client, condition, metrics))
}

fn task<T: LeaderTask>(task: Option<T>) -> Option<Arc<dyn LeaderTask>> {
    task.map(|task| Arc::new(task) as _)
}

/// Creates the task that writes the status of rules, if enabled.
fn status(
    options: &mut ControllerOptions,
    connection: &Connection,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> Option<StatusTask> {
    let rules = options.rules.take()?;
    let metrics = FollowMetrics::register(registry, connection);
    let (events, writer) = recorder_as(
        names::CONTROLLER,
        connection.client(),
        options.identity.clone(),
        registry,
    );
    // Exits once the leader's tasks are dropped and their Events are written.
    supervisor.spawn_graceful("Event writer", writer.run());
    Some(StatusTask::new(
        rules,
        connection.clone(),
        metrics,
        supervisor.readiness().clone(),
        events,
        options.clock.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use rolegate_runtime::supervisor::StartError as _;

    use super::*;

    #[test]
    fn only_errors_of_flags_are_usage_errors() {
        assert!(StartError::Client(ClientError::TokenWithoutServer).is_usage());
        assert!(!StartError::Socket(std::io::ErrorKind::Other.into()).is_usage());
    }
}
