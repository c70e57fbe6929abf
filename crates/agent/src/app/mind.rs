//! Where what pods may have comes from: this agent's own decisions, or a broker.

use std::net::IpAddr;
use std::sync::Arc;

use rolegate_aws::discovery::Discovery;
use rolegate_aws::identity;
use rolegate_aws::imds::Imds;
use rolegate_aws::sessions::{SessionMetrics, Sessions};
use rolegate_aws::sts::Sts;
use rolegate_core::rulebook::{ClusterConfig, RuleUpdate};
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_rules::keeper::{Keeper, Point, Report};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::tls::{CertificateAges, CertificateFile, Lasting};
use rolegate_standing::decider::Decider;
use rolegate_standing::ledger::Ledger;
use rolegate_standing::tell::Tell;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::{AloneOptions, SourceOptions, StartError, TaskEnd, passing, source, vital};
use crate::broker::{BrokerAge, BrokerOptions, Follower, FollowerParts, Proof};
use crate::director::{Director, DirectorParts};
use crate::door::NodeHealth;
use crate::guard::{Age, Guard, Places};
use crate::judge::Judge;
use crate::metrics::AgentMetrics;
use crate::picture::Picture;
use crate::roster::Roster;

/// Notices to the broker that may wait; more are dropped.
const NOTICES: usize = 256;

/// What both kinds stand on.
pub(super) struct Ground<'a> {
    pub(super) picture: Arc<Picture>,
    pub(super) places: Option<Arc<dyn Places>>,
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

/// What doors need of either.
pub(super) struct Mind {
    pub(super) guard: Guard,
    pub(super) judge: Judge,
    pub(super) sessions: Sessions,
    pub(super) tell: Tell,
}

/// An agent that follows the cluster, decides and calls STS.
pub(super) async fn alone(options: AloneOptions, ground: Ground<'_>) -> Result<Mind, StartError> {
    let Ground {
        clock,
        readiness,
        metrics,
        tasks,
        ..
    } = ground;
    let sts = Sts::new(options.sts);
    let (sessions, driver) = Sessions::new(
        sts.clone(),
        options.engine,
        clock.clone(),
        ground.session_metrics,
    );
    tasks.spawn(vital("the session driver", driver.run()));

    let mut keeper = Keeper::new(
        options.rules.clone(),
        Point::Door,
        options.scope,
        options.session_seconds,
    );
    let in_cluster = matches!(options.source, SourceOptions::Kubernetes { .. });
    if in_cluster && options.cluster_config != ConfigUse::Off {
        // Flags must not count for the moment until the configuration is seen.
        keeper.apply(Report::Rules(RuleUpdate::Config(ClusterConfig::Unseen)));
    }
    rolegate_rules::metrics::register(metrics.ours(), keeper.rules());
    tasks.spawn(passing(rolegate_rules::in_force::report(
        keeper.rules(),
        options.given,
        Some(readiness.condition("layers")),
    )));
    let decider = Decider::new(keeper.rules(), sessions.clone(), clock);
    let demands = source::Demands {
        keys: options.annotations,
        host_ip: ground.host_ip,
        cluster_config: options.cluster_config,
        rules: keeper.rules(),
    };
    let source = source::start(options.source, demands, readiness, metrics, tasks).await?;
    let guard = Guard::new(source.pictures.map(Age::Cluster), ground.places);
    let parts = DirectorParts {
        picture: ground.picture,
        decider: decider.clone(),
        metrics: ground.agent_metrics,
        guard: guard.clone(),
        keeper,
    };
    let (facts, learned) = watch::channel(None);
    let director = Director::new(parts, readiness).run(source.updates, source.reports, learned);
    tasks.spawn(vital("the director", director));
    let health = ground.health;
    let discovery = Discovery {
        flags: options.rules,
        base_required: options.base_required,
        session_seconds: options.session_seconds,
        sts,
        imds: ground.imds,
        instance: Box::new(move |instance| health.set_instance(instance)),
        facts,
    };
    tasks.spawn(passing(discovery.run()));
    Ok(Mind {
        guard,
        judge: Judge::Here(decider),
        sessions,
        tell: Tell::new(source.events, Ledger::default()),
    })
}

/// An agent that has what its broker sends it, and no rights.
pub(super) fn brokered(options: BrokerOptions, ground: Ground<'_>) -> Mind {
    rolegate_rules::metrics::register_brokered(ground.metrics.ours());
    info!(source = "broker", host = %options.host, port = options.port, "rules in force");
    let (sessions, fed) = Sessions::fed();
    let (sender, notices) = mpsc::channel(NOTICES);
    let age = BrokerAge::new();
    let guard = Guard::new(Some(Age::Broker(age.clone())), ground.places);
    let roster = Roster::new(ground.picture.clone(), guard.clone(), ground.agent_metrics);
    let parts = FollowerParts {
        picture: ground.picture,
        roster,
        sessions: sessions.clone(),
        fed,
        notices,
        age,
        clock: ground.clock.clone(),
    };
    let ca = CertificateFile::of_authorities("broker-ca", options.ca.clone());
    let pair = match &options.proof {
        Proof::Certificate(pair) => Some(CertificateFile::of_pair("agent", pair)),
        Proof::Token(_) => None,
    };
    let mut lasting: Vec<Arc<dyn Lasting>> = Vec::new();
    for file in std::iter::once(ca).chain(pair).map(Arc::new) {
        lasting.push(file.clone());
        ground
            .tasks
            .spawn(passing(async move { file.follow().await }));
    }
    CertificateAges::register(ground.metrics.ours(), lasting);
    let readiness = ground.readiness.clone();
    let follower = Follower::run(options, parts, readiness);
    ground
        .tasks
        .spawn(vital("the follower of the broker", follower));
    let (imds, health) = (ground.imds, ground.health);
    ground.tasks.spawn(passing(async move {
        identity::follow_instance(&imds, |instance| health.set_instance(instance)).await;
    }));
    Mind {
        guard,
        judge: Judge::Broker(ground.clock),
        sessions,
        tell: Tell::to_broker(sender),
    }
}
