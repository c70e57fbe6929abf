//! The source of workloads: watches of the API server, or a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::redirect::{METADATA_V4, METADATA_V6};
use rolegate_core::workload::Update;
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_kube::events::{Eventer, eventer};
use rolegate_kube::file::WorkloadsFile;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::node::find_node;
use rolegate_kube::picture::Pictures;
use rolegate_kube::watch::{Reporting, WatchMetrics};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::keeper::Report;
use rolegate_rules::rules::Rules;
use rolegate_rules::source::RuleSources;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{SourceOptions, StartError, TaskEnd, vital};

/// Reports that may wait for the director.
const UPDATES: usize = 256;

/// What shapes what is followed.
pub(super) struct Demands {
    pub(super) keys: AnnotationKeys,
    pub(super) host_ip: Option<IpAddr>,
    pub(super) cluster_config: ConfigUse,
    /// Tells what the rules need.
    pub(super) rules: Rules,
}

/// What a source gives.
pub(super) struct Source {
    pub(super) updates: mpsc::Receiver<Update>,
    pub(super) reports: mpsc::Receiver<Report>,
    /// Absent for a file, which is never old.
    pub(super) pictures: Option<Pictures>,
    pub(super) events: Option<Eventer>,
}

/// Starts following the source. The API server may come up later.
pub(super) async fn start(
    options: SourceOptions,
    demands: Demands,
    readiness: &Readiness,
    metrics: &mut Metrics,
    tasks: &mut JoinSet<TaskEnd>,
) -> Result<Source, StartError> {
    let (sender, updates) = mpsc::channel(UPDATES);
    let (reporter, reports) = mpsc::channel(UPDATES);
    let Demands {
        keys,
        host_ip,
        cluster_config,
        rules,
    } = demands;
    match options {
        SourceOptions::File(path) => {
            let file = WorkloadsFile::open(path).await?;
            let condition = readiness.condition("workloads file");
            tasks.spawn(vital("the workloads file", file.run(condition, sender)));
            Ok(Source {
                updates,
                reports,
                pictures: None,
                events: None,
            })
        }
        SourceOptions::Kubernetes { client, node } => {
            let connection = Connection::new(&client).await?;
            info!(api_server = connection.url(), "watching");
            let pictures = connection.pictures().clone();
            let watch_metrics = WatchMetrics::register(metrics.ours(), &pictures);
            let reporting = |name| Reporting {
                metrics: watch_metrics.clone(),
                condition: readiness.condition(name),
            };
            let instance = node.clone().unwrap_or_else(|| "rolegate-agent".into());
            let (events, writer) = eventer(connection.client(), instance, metrics.ours());
            tasks.spawn(vital("the writer of Events", writer.run()));
            let watch = {
                let (connection, keys) = (connection.clone(), keys.clone());
                let (reporting, updates) = (reporting("namespaces"), sender.clone());
                let needs = rules.needs();
                async move { watch_namespaces(&connection, keys, needs, reporting, updates).await }
            };
            tasks.spawn(vital("the watch of namespaces", watch));
            let follow = RuleSources {
                connection: connection.clone(),
                cluster_config,
                metrics: watch_metrics.clone(),
                readiness: readiness.clone(),
                reports: reporter,
            };
            let needs = rules.needs();
            tasks.spawn(vital("the watches of rules", follow.run(rules)));
            let reporting = reporting("pods");
            tasks.spawn(vital("the watch of pods", async move {
                let scope = scope(node, host_ip, &connection).await;
                watch_pods(&connection, &scope, keys, needs, reporting, sender).await;
            }));
            Ok(Source {
                updates,
                reports,
                pictures: Some(pictures),
                events: Some(events),
            })
        }
    }
}

/// This node's pods: by its name, else by this host's address, else all there are.
async fn scope(node: Option<String>, host_ip: Option<IpAddr>, connection: &Connection) -> Scope {
    if let Some(node) = node {
        return Scope::Node(node);
    }
    let addresses: Vec<_> = host_ip.into_iter().chain(outgoing()).collect();
    match find_node(connection, &addresses).await {
        Ok(node) => {
            info!(node, "this node is found by its address");
            Scope::Node(node)
        }
        Err(reason) => {
            warn!(
                %reason,
                host_ip = host_ip.map(tracing::field::display),
                "watching the pods of all nodes, those of other hosts only to drop them"
            );
            host_ip.map_or(Scope::Cluster, Scope::Host)
        }
    }
}

/// This host's addresses on the way to the metadata service. Nothing is sent.
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
