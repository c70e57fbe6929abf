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
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::rule_set_builder::{ClusterConfig, RuleUpdate};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::tls::{CertificateFile, Expires, ExpiryCollector};
use rolegate_sessions::{SessionMetrics, Sessions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::{SourceOptions, StandaloneOptions, StartError, TaskEnd, passing, source, vital};
use crate::address_verifier::{AddressVerifier, Age, AttachmentLookup};
use crate::broker::{BrokerOptions, BrokerStaleness, BrokerSync, BrokerSyncParts, ClientAuth};
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
    pub(super) readiness: &'a Readiness,
    pub(super) metrics: &'a mut Metrics,
    pub(super) tasks: &'a mut JoinSet<TaskEnd>,
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
        readiness,
        metrics,
        tasks,
        ..
    } = shared;
    let sts = Sts::new(options.sts);
    let (sessions, driver) = Sessions::new(
        sts.clone(),
        options.engine,
        clock.clone(),
        shared.session_metrics,
    );
    tasks.spawn(vital("session driver", driver.run()));

    let mut writer = RuleStoreWriter::new(
        options.rules.clone(),
        EnforcementPoint::Agent,
        options.scope,
        options.session_seconds,
    );
    let in_cluster = matches!(options.source, SourceOptions::Kubernetes { .. });
    if in_cluster && options.cluster_config != ConfigMode::Off {
        // The flags must not apply for a moment before the configuration is loaded.
        writer.apply(Report::RuleStore(RuleUpdate::Config(ClusterConfig::Unseen)));
    }
    rolegate_rules::metrics::register(metrics.ours(), writer.rules());
    tasks.spawn(passing(rolegate_rules::in_force::report(
        writer.rules(),
        options.given,
        Some(readiness.condition("layers")),
    )));
    let authorizer = Authorizer::new(writer.rules(), sessions.clone(), clock);
    let inputs = source::WatchInputs {
        keys: options.annotations,
        host_ip: shared.host_ip,
        cluster_config: options.cluster_config,
        rules: writer.rules(),
    };
    let source = source::start(options.source, inputs, readiness, metrics, tasks).await?;
    let verifier = AddressVerifier::new(source.freshness.map(Age::Cluster), shared.attachments);
    let parts = PodReconcilerParts {
        pod_table: shared.pod_table,
        authorizer: authorizer.clone(),
        metrics: shared.agent_metrics,
        verifier: verifier.clone(),
        writer,
    };
    let (facts, learned) = watch::channel(None);
    let pod_reconciler = PodReconciler::new(parts, readiness).run(Sources {
        updates: source.updates,
        reports: source.reports,
        facts: learned,
    });
    tasks.spawn(vital("pod reconciler", pod_reconciler));
    let health = shared.health;
    let discovery = Discovery {
        flags: options.rules,
        base_required: options.base_required,
        session_seconds: options.session_seconds,
        sts,
        imds: shared.imds,
        instance: Box::new(move |instance| health.set_instance(instance)),
        facts,
    };
    tasks.spawn(passing(discovery.run()));
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
    let age = BrokerStaleness::new();
    let verifier = AddressVerifier::new(Some(Age::Broker(age.clone())), shared.attachments);
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
        age,
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
        shared
            .tasks
            .spawn(passing(async move { file.follow().await }));
    }
    ExpiryCollector::register(shared.metrics.ours(), lasting);
    let readiness = shared.readiness.clone();
    let sync = BrokerSync::run(options, parts, readiness);
    shared.tasks.spawn(vital("broker sync", sync));
    let (imds, health) = (shared.imds, shared.health);
    shared.tasks.spawn(passing(async move {
        identity::follow_instance(&imds, |instance| health.set_instance(instance)).await;
    }));
    Backend {
        verifier,
        decisions: DecisionSource::Broker(shared.clock),
        sessions,
        outcomes: OutcomeRecorder::to_broker(sender),
    }
}
