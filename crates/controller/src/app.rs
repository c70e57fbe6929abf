//! The controller as a whole: options in, bound addresses out, and an owner for every task.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::events::eventer_as;
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

use crate::certificates::{CertificateMetrics, Certificates, SelfMade};
use crate::duty::{self, Duty};
use crate::lease::{Leadership, LeaseOptions, LeaseTiming};
use crate::rules::{RuleDuty, RuleOptions};

/// What the Lease is called.
const LEASE: &str = "rolegate-controller";

/// Everything that shapes a controller, validated.
#[derive(Debug)]
pub struct ControllerOptions {
    /// How the API server is reached.
    pub client: ClientOptions,
    /// Where the Lease is.
    pub namespace: String,
    /// Who this replica is: different for each process that ever runs.
    pub identity: String,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// How the leader is elected.
    pub lease: LeaseTiming,
    /// Where the webhook's certificate comes from; only one that is self-made is work for us.
    pub certificates: CertificateSource,
    /// How it is made, if it is.
    pub self_made: SelfMade,
    /// How the brokers' certificate is made, where this is who makes it.
    pub broker: Option<SelfMade>,
    /// What is done about rules; `None`: nothing.
    pub rules: Option<RuleOptions>,
    /// The time.
    pub clock: Clock,
}

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The API server cannot be reached as configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The port that was opened has no address.
    #[error("the port of the operators cannot be used")]
    Socket(#[from] std::io::Error),
}

impl StartError {
    /// Whether other flags or files are needed, and not another try.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// Where a controller listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The operators' port.
    pub admin: SocketAddr,
}

/// Why a controller ended by itself: a task that it cannot do without ended, which is a fault of
/// rolegate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// A task's end: what the controller cannot do without names itself.
type TaskEnd = Option<Broken>;

/// A running controller. Dropping it aborts everything; [`Controller::stop`] ends it in order.
#[derive(Debug)]
pub struct Controller {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    stop: CancellationToken,
    tasks: JoinSet<TaskEnd>,
}

impl Controller {
    /// Starts a controller; returns when it listens. It goes on trying to reach the API server,
    /// and says so in its readiness.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: ControllerOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let stop = CancellationToken::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let connection = Connection::new(&options.client).await?;

        // What the leader does: whatever else one replica has to do is added here.
        let mut duties: Vec<Arc<dyn Duty>> = Vec::new();
        let certificate_metrics = CertificateMetrics::register(metrics.ours());
        let webhook = matches!(options.certificates, CertificateSource::SelfMade);
        let webhook = webhook.then_some(("certificates", options.self_made));
        let broker = options.broker.map(|broker| ("broker certificates", broker));
        for (condition, options_of_it) in webhook.into_iter().chain(broker) {
            duties.push(Arc::new(Certificates::new(
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
            let watches = WatchMetrics::register(metrics.ours(), connection.pictures());
            let (events, writer) = eventer_as(
                "rolegate-controller",
                connection.client(),
                options.identity.clone(),
                metrics.ours(),
            );
            tasks.spawn(async move {
                writer.run().await;
                Some(Broken("the writer of Events"))
            });
            duties.push(Arc::new(RuleDuty::new(
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
            "Whether this replica is the leader, 1 or 0",
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
            let work = move |leading| duty::run_all(duties.clone(), leading);
            leadership.run(client, stopped.clone(), work).await;
            (!stopped.is_cancelled()).then_some(Broken("the election"))
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

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Whether it is ready, and why not. A replica that doesn't lead is ready as well.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Returns when the controller ends by itself.
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

    /// Ends it in order, up to `deadline`: what the leader does ends, the Lease is released so that
    /// another replica leads at once, then the port is closed.
    pub async fn stop(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.stop.cancel();
        // Its port is open yet: liveness probes go on while the Lease is released.
        let elected =
            async { while self.tasks.len() > 1 && self.tasks.join_next().await.is_some() {} };
        if timeout_at(until, elected).await.is_err() {
            tracing::warn!("the end took too long, the lease may not be released");
        }
        let left = until.saturating_duration_since(Instant::now());
        self.drain.drain(left).await;
        self.tasks.shutdown().await;
    }
}
