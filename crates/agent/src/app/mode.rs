//! Builds the decision backend: standalone (decides locally) or brokered.

use std::net::IpAddr;
use std::sync::Arc;

use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::reconciler::Sources;
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_aws::discovery::Discovery;
use rolegate_aws::identity;
use rolegate_aws::imds::Imds;
use rolegate_aws::sts::Sts;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::staleness::Staleness;
use rolegate_runtime::supervisor::Supervisor;
use rolegate_runtime::tls::{CertificateFile, Expires, ExpiryCollector};
use rolegate_sessions::{SessionMetrics, Sessions};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::source::Source;
use super::{StandaloneOptions, StartError};
use crate::address_verifier::{AddressVerifier, Age, AttachmentLookup};
use crate::broker::{BrokerOptions, BrokerSync, BrokerSyncParts, ClientAuth};
use crate::decision_source::DecisionSource;
use crate::metadata::NodeHealth;
use crate::metrics::AgentMetrics;
use crate::pod_reconciler::{PodReconciler, PodReconcilerParts};
use crate::pod_table::PodTable;
use crate::pod_table::writer::PodTableWriter;

/// Maximum number of queued outcome reports to the broker. More are dropped.
const MAX_QUEUED_REPORTS: usize = 256;

/// The parts that both modes use.
pub(super) struct Shared<'a> {
    pub(super) pod_table: Arc<PodTable>,
    pub(super) attachments: Option<Arc<dyn AttachmentLookup>>,
    pub(super) agent_metrics: AgentMetrics,
    pub(super) session_metrics: SessionMetrics,
    pub(super) imds: Imds,
    pub(super) health: NodeHealth,
    pub(super) host_ip: Option<IpAddr>,
    pub(super) clock: Clock,
    pub(super) metrics: &'a mut Metrics,
    pub(super) supervisor: &'a mut Supervisor,
}

/// The parts that the metadata server needs from either mode.
pub(super) struct Backend {
    pub(super) verifier: AddressVerifier,
    pub(super) decisions: DecisionSource,
    pub(super) sessions: Sessions,
    pub(super) outcomes: OutcomeRecorder,
}

/// Builds a standalone agent, which watches the cluster, decides and calls STS.
pub(super) async fn standalone(
    options: StandaloneOptions,
    shared: Shared<'_>,
) -> Result<Backend, StartError> {
    let Shared {
        clock,
        metrics,
        supervisor,
        ..
    } = shared;
    let decisions = options.decisions;
    let rules = decisions.follow();
    let sts = Sts::new(options.sts);
    let (sessions, driver) = Sessions::new(
        sts.clone(),
        decisions.engine,
        clock.clone(),
        shared.session_metrics,
    );
    supervisor.spawn_required("session driver", driver.run());

    let source = Source::start(options.source, shared.host_ip, rules, metrics, supervisor).await?;
    let writer = source.rules.writer;
    let authorizer = Authorizer::new(writer.rules(), sessions.clone(), clock)
        .with_service_accounts(source.rules.service_accounts);
    let verifier = AddressVerifier::new(source.freshness.map(Age::Cluster), shared.attachments);
    let parts = PodReconcilerParts {
        pod_table: shared.pod_table,
        authorizer: authorizer.clone(),
        metrics: shared.agent_metrics,
        verifier: verifier.clone(),
        writer,
    };
    let (aws_environment, learned) = watch::channel(None);
    let pod_reconciler = PodReconciler::new(parts, supervisor.readiness()).run(Sources::new(
        source.updates,
        source.rules.reports,
        learned,
    ));
    supervisor.spawn_required("pod reconciler", pod_reconciler);
    let health = shared.health;
    let discovery = Discovery {
        flags: decisions.rules,
        base_required: decisions.base_required,
        session_seconds: decisions.session_seconds,
        sts,
        imds: shared.imds,
        instance: Box::new(move |instance| health.set_instance(instance)),
        aws_environment,
    };
    supervisor.spawn(discovery.run());
    Ok(Backend {
        verifier,
        decisions: DecisionSource::Here(authorizer),
        sessions,
        outcomes: OutcomeRecorder::new(source.events, Ledger::default()),
    })
}

/// Builds a brokered agent, which has no permissions and receives everything from its broker.
pub(super) fn brokered(options: BrokerOptions, shared: Shared<'_>) -> Backend {
    rolegate_rules::metrics::register_brokered(shared.metrics.ours());
    info!(source = "broker", host = %options.host, port = options.port, "rules in force");
    let (sessions, fed) = Sessions::remote();
    let (sender, outcomes) = mpsc::channel(MAX_QUEUED_REPORTS);
    // Until the first update it counts from now.
    let staleness = Arc::new(Staleness::from_now());
    let verifier = AddressVerifier::new(Some(Age::Broker(staleness.clone())), shared.attachments);
    let writer = PodTableWriter::new(
        shared.pod_table.clone(),
        verifier.clone(),
        shared.agent_metrics,
    );
    let parts = BrokerSyncParts {
        pod_table: shared.pod_table,
        writer,
        sessions: sessions.clone(),
        fed,
        outcomes,
        staleness,
        clock: shared.clock.clone(),
    };
    let ca = CertificateFile::of_authorities("broker-ca", options.ca.clone());
    let pair = match &options.proof {
        ClientAuth::Certificate(pair) => Some(CertificateFile::of_pair("agent", pair)),
        ClientAuth::Token(_) => None,
    };
    let mut lasting: Vec<Arc<dyn Expires>> = Vec::new();
    for file in std::iter::once(ca).chain(pair).map(Arc::new) {
        lasting.push(file.clone());
        shared.supervisor.spawn(async move { file.follow().await });
    }
    ExpiryCollector::register(shared.metrics.ours(), lasting);
    let readiness = shared.supervisor.readiness().clone();
    let sync = BrokerSync::run(options, parts, readiness);
    shared.supervisor.spawn_required("broker sync", sync);
    let (imds, health) = (shared.imds, shared.health);
    shared.supervisor.spawn(async move {
        identity::follow_instance(&imds, |instance| health.set_instance(instance)).await;
    });
    Backend {
        verifier,
        decisions: DecisionSource::Broker(shared.clock),
        sessions,
        outcomes: OutcomeRecorder::to_broker(sender),
    }
}
