//! The source of workloads: watches of the API server, or a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::workload::Update;
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::events::{EventRecorder, recorder};
use rolegate_kube::freshness::FreshnessSet;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::node::find_node;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_kube::workloads_file::WorkloadsFile;
use rolegate_redirect::rules::{METADATA_V4, METADATA_V6};
use rolegate_rules::rules::RuleStore;
use rolegate_rules::store::Report;
use rolegate_rules::watches::RuleWatches;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{SourceOptions, StartError, TaskEnd, vital};

/// Maximum number of queued events for the pod reconciler.
const MAX_QUEUED_EVENTS: usize = 256;

/// The inputs that determine the watches.
pub(super) struct WatchInputs {
    pub(super) keys: AnnotationKeys,
    pub(super) host_ip: Option<IpAddr>,
    pub(super) cluster_config: ConfigMode,
    /// The rules, which determine the required watches.
    pub(super) rules: RuleStore,
}

/// A started source.
pub(super) struct Source {
    pub(super) updates: mpsc::Receiver<Update>,
    pub(super) reports: mpsc::Receiver<Report>,
    /// Freshness of the watches; `None` for a file, which is never stale.
    pub(super) freshness: Option<FreshnessSet>,
    pub(super) events: Option<EventRecorder>,
}

/// Starts the source. The API server may become available later.
pub(super) async fn start(
    options: SourceOptions,
    inputs: WatchInputs,
    readiness: &Readiness,
    metrics: &mut Metrics,
    tasks: &mut JoinSet<TaskEnd>,
) -> Result<Source, StartError> {
    let (sender, updates) = mpsc::channel(MAX_QUEUED_EVENTS);
    let (reporter, reports) = mpsc::channel(MAX_QUEUED_EVENTS);
    let WatchInputs {
        keys,
        host_ip,
        cluster_config,
        rules,
    } = inputs;
    match options {
        SourceOptions::File(path) => {
            let file = WorkloadsFile::open(path).await?;
            let condition = readiness.condition("workloads file");
            tasks.spawn(vital("workloads file", file.run(condition, sender)));
            Ok(Source {
                updates,
                reports,
                freshness: None,
                events: None,
            })
        }
        SourceOptions::Kubernetes { client, node } => {
            let connection = Connection::new(&client).await?;
            info!(api_server = connection.url(), "watching");
            let freshness = connection.freshness().clone();
            let watch_metrics = WatchMetrics::register(metrics.ours(), &freshness);
            let reporting = |name| WatchObserver {
                metrics: watch_metrics.clone(),
                condition: readiness.condition(name),
            };
            let instance = node.clone().unwrap_or_else(|| "rolegate-agent".into());
            let (events, writer) = recorder(connection.client(), instance, metrics.ours());
            tasks.spawn(vital("event recorder", writer.run()));
            let watch = {
                let (connection, keys) = (connection.clone(), keys.clone());
                let (reporting, updates) = (reporting("namespaces"), sender.clone());
                let needs = rules.needs();
                async move { watch_namespaces(&connection, keys, needs, reporting, updates).await }
            };
            tasks.spawn(vital("namespace watch", watch));
            let follow = RuleWatches {
                connection: connection.clone(),
                cluster_config,
                metrics: watch_metrics.clone(),
                readiness: readiness.clone(),
                reports: reporter,
            };
            let needs = rules.needs();
            tasks.spawn(vital("rule watches", follow.run(rules)));
            let reporting = reporting("pods");
            tasks.spawn(vital("pod watch", async move {
                let scope = scope(node, host_ip, &connection).await;
                watch_pods(&connection, &scope, keys, needs, reporting, sender).await;
            }));
            Ok(Source {
                updates,
                reports,
                freshness: Some(freshness),
                events: Some(events),
            })
        }
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
