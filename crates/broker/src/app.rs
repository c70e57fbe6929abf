//! The broker process: starts every task from validated options and returns the bound addresses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::reconciler::Sources;
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_aws::discovery::Discovery;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::engine::EngineOptions;
use rolegate_core::rule_set_builder::{ClusterConfig, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::events::recorder_as;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::in_force::{self, GivenRuleFlags};
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_rules::watches::RuleWatches;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2;
use rolegate_runtime::keyed_limit::KeyedLimiter;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::rate::KeyedRate;
use rolegate_runtime::readiness::{Condition, Readiness};
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::tls::{
    CertificateFile, CertificateStore, ClientAuthorities, Expires, ExpiryCollector, MutualTls,
};
use rolegate_sessions::{SessionMetrics, Sessions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use crate::agent_pods::Agents;
use crate::identity::AgentAccount;
use crate::index::{Index, IndexParts, IndexSources};
use crate::kiam::{self, KiamConnection, KiamParts};
use crate::metrics::{BrokerMetrics, Port};
use crate::node_addresses::NodeAddresses;
use crate::peers::{Expected, PortPeers};
use crate::service::{Service, ServiceParts, server};
use crate::subscription::{ACTIVATION_RATE, MAX_PER_NODE};
use crate::token_reviewer::TokenReviewer;

/// Capacity of the channel of rule reports.
const REPORT_QUEUE_SIZE: usize = 256;
/// Maximum streams of one connection: an agent opens one while another may still be closing.
const MAX_STREAMS: u32 = 2;
/// Maximum concurrent requests of a kiam agent: one for each pod that is waiting.
const MAX_KIAM_REQUESTS: u32 = 100;
/// Time after which an agent's connection without a stream is closed.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(45);
/// Time after which a kiam agent's connection without a request is closed. Pods ask about twice an
/// hour, and the node's sessions are held while the connection is open.
const KIAM_UNUSED_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Interval at which the client CA file is read.
const CA_POLL_INTERVAL: Duration = Duration::from_secs(10);

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

/// The result of a task: the task's name if the broker cannot continue without it.
type TaskEnd = Option<&'static str>;

/// A running broker. Dropping it aborts all tasks; [`Broker::stop`] shuts it down gracefully.
#[derive(Debug)]
pub struct Broker {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    tasks: JoinSet<TaskEnd>,
}

impl Broker {
    /// Starts a broker and returns once its ports are open. Dependencies that are not available yet
    /// are retried, and readiness reports them.
    ///
    /// # Errors
    /// Returns [`StartError`] if the options cannot be used.
    pub async fn start(options: BrokerOptions) -> Result<Self, StartError> {
        let readiness = Readiness::new();
        let drain = Drain::new();
        let mut tasks = JoinSet::new();
        let mut metrics = Metrics::new();
        let broker_metrics = BrokerMetrics::register(metrics.ours());
        let clock = options.clock;

        let imds = Imds::new(&options.metadata_addr)?;
        let sts = Sts::new(options.sts);
        let session_metrics = SessionMetrics::register(metrics.ours());
        let (sessions, driver) =
            Sessions::new(sts.clone(), options.engine, clock.clone(), session_metrics);
        // Unbounded, but its content is bounded: the index takes one entry for each call to STS.
        let (changed, changes) = mpsc::unbounded_channel();
        tasks.spawn(vital(
            "session driver",
            driver.notify_changes(changed).run(),
        ));

        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");
        let freshness = connection.freshness().clone();
        let watch_metrics = WatchMetrics::register(metrics.ours(), &freshness);
        let (events, writer) = recorder_as(
            "rolegate-broker",
            connection.client(),
            options.name.clone(),
            metrics.ours(),
        );
        tasks.spawn(vital("Event writer", writer.run()));

        let mut writer = RuleStoreWriter::new(
            options.rules.clone(),
            EnforcementPoint::Agent,
            options.scope,
            options.session_seconds,
        );
        if options.cluster_config != ConfigMode::Off {
            // Flags must not apply before the cluster's configuration was read.
            writer.apply(Report::RuleStore(RuleUpdate::Config(ClusterConfig::Unseen)));
        }
        let rules = writer.rules();
        rolegate_rules::metrics::register(metrics.ours(), rules.clone());
        tasks.spawn(passing(in_force::report(
            rules.clone(),
            options.given,
            Some(readiness.condition("layers")),
        )));
        let authorizer = Authorizer::new(rules.clone(), sessions, clock.clone());
        let (reporter, reports) = mpsc::channel(REPORT_QUEUE_SIZE);
        let (sender, updates) = mpsc::channel(REPORT_QUEUE_SIZE);
        let reporting = |name| WatchObserver {
            metrics: watch_metrics.clone(),
            condition: readiness.condition(name),
        };
        let sources = RuleWatches {
            connection: connection.clone(),
            cluster_config: options.cluster_config,
            metrics: watch_metrics.clone(),
            readiness: readiness.clone(),
            reports: reporter,
        };
        let needs = rules.needs();
        tasks.spawn(vital("rule watches", sources.run(rules)));
        let watch = {
            let (connection, keys) = (connection.clone(), options.annotations.clone());
            let (reporting, sender) = (reporting("namespaces"), sender.clone());
            let needs = needs.clone();
            async move { watch_namespaces(&connection, keys, needs, reporting, sender).await }
        };
        tasks.spawn(vital("namespace watch", watch));
        let watch = {
            let (connection, keys) = (connection.clone(), options.annotations);
            let reporting = reporting("pods");
            async move {
                watch_pods(&connection, &Scope::Cluster, keys, needs, reporting, sender).await;
            }
        };
        tasks.spawn(vital("pod watch", watch));

        let (facts, learned) = watch::channel(None);
        let discovery = Discovery {
            flags: options.rules,
            base_required: options.base_required,
            session_seconds: options.session_seconds,
            sts,
            imds,
            instance: Box::new(|_| ()),
            facts,
        };
        tasks.spawn(passing(discovery.run()));

        let agents = Agents::new(options.agents);
        // Unbounded, but its content is bounded: at most three entries for each stream, and a
        // node's permit is released only after the index has taken the last of them.
        let (commands, ordered) = mpsc::unbounded_channel();
        let node_addresses = options.kiam.is_some().then(NodeAddresses::default);
        let parts = IndexParts {
            writer,
            authorizer: authorizer.clone(),
            agents: agents.clone(),
            node_addresses: node_addresses.clone(),
            metrics: broker_metrics.clone(),
        };
        let index = Index::new(parts, &readiness).run(IndexSources {
            cluster: Sources {
                updates,
                reports,
                facts: learned,
            },
            commands: ordered,
            sessions: changes,
        });
        tasks.spawn(vital("index", index));

        let store = Arc::new(CertificateStore::new(
            "broker",
            clock.clone(),
            readiness.condition("certificate"),
        ));
        let mut lasting: Vec<Arc<dyn Expires>> = vec![store.clone()];
        let kiam_ca = options.kiam.as_ref().map(|kiam| kiam.client_ca.clone());
        for (name, path) in [
            ("client-ca", options.client_ca.clone()),
            ("kiam-client-ca", kiam_ca),
        ] {
            if let Some(path) = path {
                let file = CertificateFile::of_authorities(name, path);
                let file = Arc::new(file);
                lasting.push(file.clone());
                tasks.spawn(passing(async move { file.follow().await }));
            }
        }
        ExpiryCollector::register(metrics.ours(), lasting);
        let authorities = Arc::new(ClientAuthorities::default());
        let tls = mutual(&store, &authorities, &clock)?;
        let limits = move |streams, unused| http2::Limits {
            connections: options.connections,
            per_peer: options.connections_per_peer,
            streams,
            unused,
        };
        let (client, shown) = (connection.client(), store.clone());
        let (source, (namespace, name)) = (options.certificate, options.secret);
        let ready = readiness.clone();
        tasks.spawn(vital("certificate source", async move {
            source
                .follow(client, &namespace, &name, &shown, &ready)
                .await;
        }));
        if let Some(path) = options.client_ca {
            let condition = readiness.condition("client authorities");
            let following = follow_authorities(path, authorities, condition);
            tasks.spawn(vital("client CA reload", following));
        }

        let ledger = Ledger::new(options.ledger_entries);
        let recorder = OutcomeRecorder::new(Some(events), ledger.clone());
        let mut kiam = None;
        if let (Some(options), Some(node_addresses)) = (options.kiam, node_addresses) {
            let listener = listen(options.listen)?;
            kiam = Some(listener.local_addr()?);
            let authorities = Arc::new(ClientAuthorities::default());
            let tls = mutual(&store, &authorities, &clock)?;
            let condition = readiness.condition("kiam client authorities");
            let following = follow_authorities(options.client_ca, authorities, condition);
            tasks.spawn(vital("kiam client CA reload", following));
            let peers = Arc::new(PortPeers {
                expected: Expected::Nodes(node_addresses.clone()),
                port: Port::Kiam,
                metrics: broker_metrics.clone(),
                condition: readiness.condition("kiam connections"),
            });
            let parts = Arc::new(KiamParts {
                node_addresses,
                permits: KeyedLimiter::new(MAX_PER_NODE),
                rates: KeyedRate::new(kiam::REQUEST_RATE),
                activations: KeyedRate::new(ACTIVATION_RATE),
                freshness: freshness.clone(),
                max_staleness: options.max_staleness,
                commands: commands.clone(),
                authorizer,
                recorder: recorder.clone(),
                metrics: broker_metrics.clone(),
                clock: clock.clone(),
            });
            tasks.spawn(passing(http2::serve(
                listener,
                tls,
                limits(MAX_KIAM_REQUESTS, KIAM_UNUSED_TIMEOUT),
                drain.clone(),
                peers,
                move |peer: SocketAddr, names, shown| {
                    let parts = parts.clone();
                    let connection = KiamConnection::new(parts, peer.ip(), &names, shown)?;
                    Some(TowerToHyperService::new(kiam::server(connection)))
                },
            )));
        }
        let peers = Arc::new(PortPeers {
            expected: Expected::Agents(agents.clone()),
            port: Port::Agents,
            metrics: broker_metrics.clone(),
            condition: readiness.condition("agent connections"),
        });
        let check_address = agents.account().check_address;
        let service = Service::new(ServiceParts {
            name: options.name,
            token_reviewer: TokenReviewer::new(connection.client(), check_address, clock.clone()),
            agents,
            commands,
            recorder,
            freshness,
            metrics: broker_metrics,
            clock,
            drain: drain.clone(),
        });
        let listener = listen(options.listen)?;
        let admin = listen(options.admin_listen)?;
        let ledger_listener = listen(options.ledger_listen)?;
        let addresses = Addresses {
            agents: listener.local_addr()?,
            admin: admin.local_addr()?,
            ledger: ledger_listener.local_addr()?,
            kiam,
        };
        let serving = Admin::new(Arc::new(metrics), readiness.clone());
        tasks.spawn(passing(serving.serve(admin, drain.clone())));
        tasks.spawn(passing(crate::ledger_server::serve(
            ledger,
            ledger_listener,
            drain.clone(),
        )));
        tasks.spawn(passing(http2::serve(
            listener,
            tls,
            limits(MAX_STREAMS, UNUSED_TIMEOUT),
            drain.clone(),
            peers,
            move |peer: SocketAddr, names, shown| {
                let connection = service.connection(peer.ip(), names, shown);
                Some(TowerToHyperService::new(server(connection)))
            },
        )));
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

    /// Returns the broker's readiness.
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

    /// Shuts down gracefully: asks agents to reconnect elsewhere and waits up to `deadline`.
    pub async fn stop(mut self, deadline: Duration) {
        self.drain.drain(deadline).await;
        self.tasks.shutdown().await;
    }
}

/// Builds the mutual TLS configuration from the certificate in `store`.
fn mutual(
    store: &Arc<CertificateStore>,
    authorities: &Arc<ClientAuthorities>,
    clock: &Clock,
) -> Result<MutualTls, StartError> {
    MutualTls::new(store.clone(), authorities.clone(), clock.clone())
        .map_err(|error| StartError::Tls(error.to_string()))
}

/// Reloads a CA file periodically.
async fn follow_authorities(
    path: PathBuf,
    authorities: Arc<ClientAuthorities>,
    condition: Condition,
) {
    loop {
        let read = tokio::fs::read(&path).await;
        let read = read.map_err(|error| error.to_string());
        match read.and_then(|pem| authorities.set(&pem)) {
            Ok(()) => condition.ok(),
            Err(why) => condition.fail(format!("{}: {why}", path.display())),
        }
        tokio::time::sleep(CA_POLL_INTERVAL).await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Connections are tasks of the drain.
        self.drain.force();
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
