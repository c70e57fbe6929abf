//! The source of workloads: watches of the API server, or a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use rolegate_core::names;
use rolegate_core::workload::Update;
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_kube::events::{EventRecorder, recorder};
use rolegate_kube::freshness::FreshnessSet;
use rolegate_kube::node::find_node;
use rolegate_kube::watch::WatchObserver;
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_kube::workloads_file::WorkloadsFile;
use rolegate_redirect::rules::{METADATA_V4, METADATA_V6};
use rolegate_rules::{FollowMetrics, FollowOptions, RuleFollower, follow, from_flags};
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::supervisor::Supervisor;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{SourceOptions, StartError};

/// Maximum number of queued events for the pod reconciler.
const MAX_QUEUED_EVENTS: usize = 256;

/// A started source.
pub(super) struct Source {
    pub(super) rules: RuleFollower,
    pub(super) updates: mpsc::Receiver<Update>,
    /// Freshness of the watches; `None` for a file, which is never stale.
    pub(super) freshness: Option<FreshnessSet>,
    pub(super) events: Option<EventRecorder>,
    /// The API server; `None` for a file.
    pub(super) connection: Option<Connection>,
}

impl Source {
    /// Starts the source. The API server may become available later.
    pub(super) async fn start(
        options: SourceOptions,
        host_ip: Option<IpAddr>,
        rules: FollowOptions,
        metrics: &mut Metrics,
        supervisor: &mut Supervisor,
    ) -> Result<Self, StartError> {
        match options {
            SourceOptions::File(path) => Self::file(path, rules, metrics, supervisor).await,
            SourceOptions::Kubernetes { client, node } => {
                Self::cluster(client, (node, host_ip), rules, metrics, supervisor).await
            }
        }
    }

    async fn file(
        path: PathBuf,
        rules: FollowOptions,
        metrics: &mut Metrics,
        supervisor: &mut Supervisor,
    ) -> Result<Self, StartError> {
        let (sender, updates) = mpsc::channel(MAX_QUEUED_EVENTS);
        let file = WorkloadsFile::open(path).await?;
        let condition = supervisor.readiness().condition("workloads file");
        supervisor.spawn_required("workloads file", file.run(condition, sender));
        Ok(Self {
            rules: from_flags(rules, metrics.ours(), supervisor),
            updates,
            freshness: None,
            events: None,
            connection: None,
        })
    }

    async fn cluster(
        client: ClientOptions,
        (node, host_ip): (Option<String>, Option<IpAddr>),
        rules: FollowOptions,
        metrics: &mut Metrics,
        supervisor: &mut Supervisor,
    ) -> Result<Self, StartError> {
        let (sender, updates) = mpsc::channel(MAX_QUEUED_EVENTS);
        let connection = Connection::new(&client).await?;
        info!(api_server = connection.url(), "watching");
        let freshness = connection.freshness().clone();
        let instance = node.clone().unwrap_or_else(|| names::AGENT.into());
        let (events, writer) = recorder(connection.client(), instance, metrics.ours());
        supervisor.spawn_required("event recorder", writer.run());
        let follow_metrics = FollowMetrics::register(metrics.ours(), &connection);
        let keys = rules.keys.clone();
        let rules = follow(&connection, rules, &follow_metrics, supervisor);
        let needs = rules.writer.rules().needs();
        let observer = WatchObserver {
            metrics: follow_metrics.watches,
            condition: supervisor.readiness().condition("pods"),
        };
        let watched = connection.clone();
        supervisor.spawn_required("pod watch", async move {
            let scope = scope(node, host_ip, &watched).await;
            watch_pods(&watched, &scope, keys, needs, observer, sender).await;
        });
        Ok(Self {
            rules,
            updates,
            freshness: Some(freshness),
            events: Some(events),
            connection: Some(connection),
        })
    }
}

/// Returns this node's pods: selected by its name, else by this host's address, else all pods.
async fn scope(node: Option<String>, host_ip: Option<IpAddr>, connection: &Connection) -> Scope {
    if let Some(node) = node {
        return Scope::Node(node);
    }
    let addresses: Vec<_> = host_ip.into_iter().chain(outgoing()).collect();
    match find_node(connection, &addresses).await {
        Ok(node) => {
            info!(node, "found this node by its address");
            Scope::Node(node)
        }
        Err(reason) => {
            warn!(
                %reason,
                host_ip = host_ip.map(tracing::field::display),
                "watching the pods of all nodes; ignoring those of other hosts"
            );
            host_ip.map_or(Scope::Cluster, Scope::Host)
        }
    }
}

/// Returns this host's source addresses for the metadata service. It sends nothing.
fn outgoing() -> impl Iterator<Item = IpAddr> {
    let ways: [(SocketAddr, SocketAddr); 2] = [
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (METADATA_V4, 80).into()),
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (METADATA_V6, 80).into()),
    ];
    ways.into_iter().filter_map(|(from, to)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}
