//! The tasks that decide: rules, sessions, the watch on pods, and the index.

use prometheus_client::registry::Registry;
use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::reconciler::Sources;
use rolegate_aws::discovery::Discovery;
use rolegate_aws::imds::Imds;
use rolegate_aws::sts::Sts;
use rolegate_core::needs::Needs;
use rolegate_core::workload::Update;
use rolegate_kube::client::Connection;
use rolegate_kube::events::{EventRecorder, recorder_as};
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::{FollowMetrics, follow};
use rolegate_runtime::supervisor::Supervisor;
use rolegate_sessions::{SessionMetrics, Sessions};
use tokio::sync::{mpsc, watch};

use super::BrokerOptions;
use crate::agent_pods::Agents;
use crate::index::{Index, IndexParts, IndexSources, StreamCommand};
use crate::metrics::BrokerMetrics;
use crate::node_addresses::NodeAddresses;

/// Capacity of the channel of pods.
const UPDATE_QUEUE_SIZE: usize = 256;

/// The handles of the tasks that decide.
pub(super) struct Decisions {
    pub(super) agents: Agents,
    /// The addresses of nodes, if kiam agents are served.
    pub(super) node_addresses: Option<NodeAddresses>,
    pub(super) authorizer: Authorizer,
    /// Commands to the index.
    pub(super) commands: mpsc::UnboundedSender<StreamCommand>,
    events: EventRecorder,
}

impl Decisions {
    /// Starts the tasks.
    pub(super) fn start(
        options: &BrokerOptions,
        (connection, imds): (&Connection, Imds),
        metrics: &BrokerMetrics,
        registry: &mut Registry,
        supervisor: &mut Supervisor,
    ) -> Self {
        let sts = Sts::new(options.sts.clone());
        let session_metrics = SessionMetrics::register(registry);
        let clock = options.clock.clone();
        let (sessions, driver) = Sessions::new(
            sts.clone(),
            options.decisions.engine,
            clock.clone(),
            session_metrics,
        );
        // Unbounded, but its content is bounded: the index takes one entry for each call to STS.
        let (changed, changes) = mpsc::unbounded_channel();
        supervisor.spawn_required("session driver", driver.notify_changes(changed).run());
        let (events, writer) = recorder_as(
            "rolegate-broker",
            connection.client(),
            options.name.clone(),
            registry,
        );
        supervisor.spawn_required("Event writer", writer.run());

        let follow_metrics = FollowMetrics::register(registry, connection);
        let rules = follow(
            connection,
            options.decisions.follow(),
            &follow_metrics,
            supervisor,
        );
        let readers = rules.writer.rules();
        let watches = follow_metrics.watches;
        let updates = pods(options, connection, readers.needs(), watches, supervisor);
        let (aws_environment, learned) = watch::channel(None);
        let discovery = Discovery {
            flags: options.decisions.rules.clone(),
            base_required: options.decisions.base_required,
            session_seconds: options.decisions.session_seconds,
            sts,
            imds,
            instance: Box::new(|_| ()),
            aws_environment,
        };
        supervisor.spawn(discovery.run());

        let agents = Agents::new(options.agents.clone());
        let node_addresses = options.kiam.is_some().then(NodeAddresses::default);
        let authorizer =
            Authorizer::new(readers, sessions, clock).with_service_accounts(rules.service_accounts);
        let parts = IndexParts {
            writer: rules.writer,
            authorizer: authorizer.clone(),
            agents: agents.clone(),
            node_addresses: node_addresses.clone(),
            metrics: metrics.clone(),
        };
        // Unbounded, but its content is bounded: at most three entries for each stream, and a
        // node's permit is released only after the index has taken the last of them.
        let (commands, ordered) = mpsc::unbounded_channel();
        let index = Index::new(parts, supervisor.readiness()).run(IndexSources {
            cluster: Sources::new(updates, rules.reports, learned),
            commands: ordered,
            sessions: changes,
        });
        supervisor.spawn_required("index", index);
        Self {
            agents,
            node_addresses,
            authorizer,
            commands,
            events,
        }
    }

    /// Returns the recorder of Events.
    pub(super) fn events(&self) -> EventRecorder {
        self.events.clone()
    }
}

/// Starts the watch on the cluster's pods.
fn pods(
    options: &BrokerOptions,
    connection: &Connection,
    needs: watch::Receiver<Option<Needs>>,
    metrics: WatchMetrics,
    supervisor: &mut Supervisor,
) -> mpsc::Receiver<Update> {
    let (sender, updates) = mpsc::channel(UPDATE_QUEUE_SIZE);
    let observer = WatchObserver {
        metrics,
        condition: supervisor.readiness().condition("pods"),
    };
    let (connection, keys) = (connection.clone(), options.decisions.annotations.clone());
    supervisor.spawn_required("pod watch", async move {
        watch_pods(&connection, &Scope::Cluster, keys, needs, observer, sender).await;
    });
    updates
}
