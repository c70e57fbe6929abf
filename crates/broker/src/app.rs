//! The broker as a process: options in, bound addresses out, and an owner for every task.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use rolegate_aws::discovery::Discovery;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_aws::sessions::{SessionMetrics, Sessions};
use rolegate_aws::sts::{Sts, StsOptions};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::rulebook::{ClusterConfig, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::{ClientError, ClientOptions, Connection};
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_kube::events::eventer_as;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_kube::watch::{Reporting, WatchMetrics};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::in_force::{self, GivenRuleFlags};
use rolegate_rules::keeper::{Keeper, Point, Report};
use rolegate_rules::source::RuleSources;
use rolegate_runtime::admin::Admin;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::places::Places;
use rolegate_runtime::rate::KeyedRate;
use rolegate_runtime::readiness::{Condition, Readiness};
use rolegate_runtime::serve::{ListenError, listen};
use rolegate_runtime::tls::{
    CertificateAges, CertificateFile, CertificateStore, ClientAuthorities, Lasting, MutualTls,
};
use rolegate_standing::decider::Decider;
use rolegate_standing::ledger::Ledger;
use rolegate_standing::tell::Tell;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use crate::agents::Agents;
use crate::desk::{Desk, DeskParts, Sources};
use crate::feed::{BEGINS, PER_NODE};
use crate::hosts::Hosts;
use crate::identity::AgentAccount;
use crate::kiam::{self, KiamConnection, KiamParts};
use crate::metrics::{BrokerMetrics, Port};
use crate::peers::{Expected, PortPeers};
use crate::reviewer::Reviewer;
use crate::service::{Service, ServiceParts, server};

/// Reports that may wait to be taken.
const REPORTS: usize = 256;
/// Streams of one connection: an agent opens one, and another may be ending.
const STREAMS: u32 = 2;
/// Requests of a kiam agent that may be open: one for each pod that asks.
const KIAM_REQUESTS: u32 = 100;
/// How long an agent's connection may be open without a stream.
const UNUSED: Duration = Duration::from_secs(45);
/// How long a kiam agent's may be without a request. Its node's pods ask about twice an hour, and
/// their sessions are held as long as it is open.
const KIAM_UNUSED: Duration = Duration::from_secs(2 * 3600);
/// How often the file of clients' authorities is read.
const AUTHORITIES: Duration = Duration::from_secs(10);

/// Everything that shapes a broker, validated.
#[derive(Debug)]
pub struct BrokerOptions {
    /// The agents' port.
    pub listen: SocketAddr,
    /// The operators' port.
    pub admin_listen: SocketAddr,
    /// Where the ledger is shown.
    pub ledger_listen: SocketAddr,
    /// Entries of the ledger.
    pub ledger_entries: usize,
    /// This replica's name.
    pub name: String,
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
    /// Who is taken for an agent.
    pub agents: AgentAccount,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// The Secret of the certificate, unless it comes from files: namespace and name.
    pub secret: (String, String),
    /// The authorities of agents' certificates, PEM; `None`: agents show tokens.
    pub client_ca: Option<PathBuf>,
    /// The metadata service of the broker's own node.
    pub metadata_addr: String,
    /// How STS is reached.
    pub sts: StsOptions,
    /// Whether decisions wait until a base ARN is found.
    pub base_required: bool,
    /// Which workloads share a session.
    pub scope: SessionScope,
    /// The life asked of STS, seconds.
    pub session_seconds: u32,
    /// Limits of the session engine.
    pub engine: EngineOptions,
    /// Most connections of agents.
    pub connections: usize,
    /// Most unauthenticated ones of one address, or of an IPv6 /64.
    pub connections_per_peer: usize,
    /// Whether kiam's agents are served, and how.
    pub kiam: Option<KiamOptions>,
    /// The time.
    pub clock: Clock,
}

/// How kiam's agents are served.
#[derive(Debug, Clone)]
pub struct KiamOptions {
    /// Their port.
    pub listen: SocketAddr,
    /// The authorities of their certificates, PEM.
    pub client_ca: PathBuf,
    /// The greatest age of what is known of the cluster at which they are served.
    pub max_picture_age: Duration,
}

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The API server cannot be reached as configured.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The metadata service's address is malformed.
    #[error("--metadata-addr: {0}")]
    Imds(#[from] ImdsError),
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
    /// The agents' port.
    pub agents: SocketAddr,
    /// The operators' port.
    pub admin: SocketAddr,
    /// The ledger's.
    pub ledger: SocketAddr,
    /// kiam's agents' port, if they are served.
    pub kiam: Option<SocketAddr>,
}

/// A task's end: one that the broker cannot do without names itself.
type TaskEnd = Option<&'static str>;

/// A running broker. Dropping it aborts everything; [`Broker::stop`] ends it in order.
#[derive(Debug)]
pub struct Broker {
    addresses: Addresses,
    readiness: Readiness,
    drain: Drain,
    tasks: JoinSet<TaskEnd>,
}

impl Broker {
    /// Starts it; returns when it listens. What it needs and cannot have yet it goes on asking
    /// for, and says so in its readiness.
    ///
    /// # Errors
    /// [`StartError`].
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
        // Not bounded, but what is in it is: the desk takes one for each call to STS.
        let (changed, changes) = mpsc::unbounded_channel();
        tasks.spawn(vital("the session driver", driver.telling(changed).run()));

        let connection = Connection::new(&options.client).await?;
        info!(api_server = connection.url(), "watching");
        let pictures = connection.pictures().clone();
        let watch_metrics = WatchMetrics::register(metrics.ours(), &pictures);
        let (events, writer) = eventer_as(
            "rolegate-broker",
            connection.client(),
            options.name.clone(),
            metrics.ours(),
        );
        tasks.spawn(vital("the writer of Events", writer.run()));

        let mut keeper = Keeper::new(
            options.rules.clone(),
            Point::Door,
            options.scope,
            options.session_seconds,
        );
        if options.cluster_config != ConfigUse::Off {
            // Flags must not count for the moment until the configuration is seen.
            keeper.apply(Report::Rules(RuleUpdate::Config(ClusterConfig::Unseen)));
        }
        let rules = keeper.rules();
        rolegate_rules::metrics::register(metrics.ours(), rules.clone());
        tasks.spawn(passing(in_force::report(
            rules.clone(),
            options.given,
            Some(readiness.condition("layers")),
        )));
        let decider = Decider::new(rules.clone(), sessions, clock.clone());
        let (reporter, reports) = mpsc::channel(REPORTS);
        let (sender, updates) = mpsc::channel(REPORTS);
        let reporting = |name| Reporting {
            metrics: watch_metrics.clone(),
            condition: readiness.condition(name),
        };
        let sources = RuleSources {
            connection: connection.clone(),
            cluster_config: options.cluster_config,
            metrics: watch_metrics.clone(),
            readiness: readiness.clone(),
            reports: reporter,
        };
        let needs = rules.needs();
        tasks.spawn(vital("the watches of rules", sources.run(rules)));
        let watch = {
            let (connection, keys) = (connection.clone(), options.annotations.clone());
            let (reporting, sender) = (reporting("namespaces"), sender.clone());
            let needs = needs.clone();
            async move { watch_namespaces(&connection, keys, needs, reporting, sender).await }
        };
        tasks.spawn(vital("the watch of namespaces", watch));
        let watch = {
            let (connection, keys) = (connection.clone(), options.annotations);
            let reporting = reporting("pods");
            async move {
                watch_pods(&connection, &Scope::Cluster, keys, needs, reporting, sender).await;
            }
        };
        tasks.spawn(vital("the watch of pods", watch));

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
        // Not bounded, but what is in it is: three for each stream, and a node's place is free when
        // the desk has taken the last of them.
        let (orders, ordered) = mpsc::unbounded_channel();
        let hosts = options.kiam.is_some().then(Hosts::default);
        let parts = DeskParts {
            keeper,
            decider: decider.clone(),
            agents: agents.clone(),
            hosts: hosts.clone(),
            metrics: broker_metrics.clone(),
        };
        let desk = Desk::new(parts, &readiness).run(Sources {
            updates,
            reports,
            facts: learned,
            orders: ordered,
            sessions: changes,
        });
        tasks.spawn(vital("the desk", desk));

        let store = Arc::new(CertificateStore::new(
            "broker",
            clock.clone(),
            readiness.condition("certificate"),
        ));
        let mut lasting: Vec<Arc<dyn Lasting>> = vec![store.clone()];
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
        CertificateAges::register(metrics.ours(), lasting);
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
        tasks.spawn(vital("the certificate's source", async move {
            source
                .follow(client, &namespace, &name, &shown, &ready)
                .await;
        }));
        if let Some(path) = options.client_ca {
            let condition = readiness.condition("client authorities");
            let following = follow_authorities(path, authorities, condition);
            tasks.spawn(vital("the authorities of agents", following));
        }

        let ledger = Ledger::new(options.ledger_entries);
        let tell = Tell::new(Some(events), ledger.clone());
        let mut kiam = None;
        if let (Some(options), Some(hosts)) = (options.kiam, hosts) {
            let listener = listen(options.listen)?;
            kiam = Some(listener.local_addr()?);
            let authorities = Arc::new(ClientAuthorities::default());
            let tls = mutual(&store, &authorities, &clock)?;
            let condition = readiness.condition("kiam client authorities");
            let following = follow_authorities(options.client_ca, authorities, condition);
            tasks.spawn(vital("the authorities of kiam's agents", following));
            let peers = Arc::new(PortPeers {
                expected: Expected::Nodes(hosts.clone()),
                port: Port::Kiam,
                metrics: broker_metrics.clone(),
                condition: readiness.condition("kiam connections"),
            });
            let parts = Arc::new(KiamParts {
                hosts,
                places: Places::new(PER_NODE),
                rates: KeyedRate::new(kiam::REQUESTS),
                begins: KeyedRate::new(BEGINS),
                pictures: pictures.clone(),
                max_picture_age: options.max_picture_age,
                orders: orders.clone(),
                decider,
                tell: tell.clone(),
                metrics: broker_metrics.clone(),
                clock: clock.clone(),
            });
            tasks.spawn(passing(http2::serve(
                listener,
                tls,
                limits(KIAM_REQUESTS, KIAM_UNUSED),
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
            reviewer: Reviewer::new(connection.client(), check_address, clock.clone()),
            agents,
            orders,
            tell,
            pictures,
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
        tasks.spawn(passing(crate::ledger_page::serve(
            ledger,
            ledger_listener,
            drain.clone(),
        )));
        tasks.spawn(passing(http2::serve(
            listener,
            tls,
            limits(STREAMS, UNUSED),
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

    /// Ends it in order: streams are told to go elsewhere, up to `deadline`.
    pub async fn stop(mut self, deadline: Duration) {
        self.drain.drain(deadline).await;
        self.tasks.shutdown().await;
    }
}

/// TLS that shows what `store` holds.
fn mutual(
    store: &Arc<CertificateStore>,
    authorities: &Arc<ClientAuthorities>,
    clock: &Clock,
) -> Result<MutualTls, StartError> {
    MutualTls::new(store.clone(), authorities.clone(), clock.clone())
        .map_err(|error| StartError::Tls(error.to_string()))
}

/// Reads a file of authorities again and again.
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
        tokio::time::sleep(AUTHORITIES).await;
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
