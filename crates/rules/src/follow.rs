//! Follows the rules of a cluster, for every process that decides.

use std::collections::HashSet;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, ClusterConfig, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::namespaces::{NamespaceMessage, watch_namespaces};
use rolegate_kube::service_accounts::watch_service_accounts;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_runtime::readiness::Condition;
use rolegate_runtime::supervisor::Supervisor;
use tokio::sync::mpsc;

use crate::in_force::GivenRuleFlags;
use crate::metrics::CurrentRules;
use crate::report::report;
use crate::rules::RuleStore;
use crate::service_accounts::ServiceAccountStore;
use crate::store::{Report, RuleStoreWriter};
use crate::watches::{CONDITIONS, RuleWatches};

/// Capacity of the channel of reports.
const REPORT_QUEUE_SIZE: usize = 256;
/// The session duration of decisions that create no session, in seconds.
const NO_SESSION_SECONDS: u32 = 3600;
/// The name of the readiness condition of the namespaces' watch.
const NAMESPACES: &str = "namespaces";
/// The name of the readiness condition of the service accounts' watch.
const SERVICE_ACCOUNTS: &str = "service accounts";

/// The rules to follow, and their use.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// The rules set by flags. They apply unless the cluster has a configuration.
    pub flags: RuleConfig,
    /// The names of the rule flags and variables that were given.
    pub given: GivenRuleFlags,
    /// The use of the cluster's configuration.
    pub cluster_config: ConfigMode,
    /// The annotation keys.
    pub keys: AnnotationKeys,
    /// The purpose of the decisions.
    pub purpose: Purpose,
    /// The prefix of the EKS webhook's annotations of service accounts; `None` if no endpoint needs
    /// service accounts, which are then not watched.
    pub service_accounts: Option<String>,
}

/// The purpose of decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Objects are validated. No session is created, and the AWS environment is not detected.
    Admission,
    /// Pods get credentials. Decisions wait until [`RuleStoreWriter::set_aws_environment`] was called with the
    /// detected AWS environment, and readiness has a note while no layer is enforced.
    Credentials {
        /// The workloads that share a session.
        scope: SessionScope,
        /// The session duration requested from STS, in seconds.
        session_seconds: u32,
    },
}

/// The metrics of rules and of the watches on their objects. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct FollowMetrics {
    /// The metrics of watches, also for those on other objects.
    pub watches: WatchMetrics,
    /// The rules whose metrics are exported.
    pub rules: CurrentRules,
}

impl FollowMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry, connection: &Connection) -> Self {
        let rules = CurrentRules::default();
        rules.register(registry);
        Self {
            watches: WatchMetrics::register(registry, connection.freshness()),
            rules,
        }
    }
}

/// The rules of a cluster and their sources. The owner applies the reports, since a change of the
/// rules affects what it has decided.
#[derive(Debug)]
pub struct RuleFollower {
    /// The writer of the rules.
    pub writer: RuleStoreWriter,
    /// The reports of the sources, for the writer.
    pub reports: mpsc::Receiver<Report>,
    /// The service accounts, if they are watched.
    pub service_accounts: Option<ServiceAccountStore>,
}

/// Starts to follow the rules of a cluster. The watches are tasks of `supervisor`.
pub fn follow(
    connection: &Connection,
    options: FollowOptions,
    metrics: &FollowMetrics,
    supervisor: &mut Supervisor,
) -> RuleFollower {
    let (cluster_config, keys) = (options.cluster_config, options.keys.clone());
    let mut writer = writer(&options);
    if cluster_config != ConfigMode::Off {
        // Flags must not apply before the cluster's configuration was read.
        writer.apply(Report::Rules(RuleUpdate::Config(ClusterConfig::NotSynced)));
    }
    let prefix = options.service_accounts.clone();
    let rules = publish(&writer, options, &metrics.rules, supervisor);
    let (sender, reports) = mpsc::channel(REPORT_QUEUE_SIZE);
    let service_accounts = prefix.map(|prefix| {
        let observer = WatchObserver {
            metrics: metrics.watches.clone(),
            condition: supervisor.readiness().condition(SERVICE_ACCOUNTS),
        };
        let store = ServiceAccountStore::default();
        let (connection, written, sender) = (connection.clone(), store.clone(), sender.clone());
        supervisor.spawn_required("service account watch", async move {
            // The store is written first, so a change applies to the next request even while the
            // reports of earlier changes wait.
            let wrap = move |change| Report::ServiceAccounts(written.apply(change));
            watch_service_accounts(&connection, prefix, observer, wrap, sender).await;
        });
        store
    });
    let watches = RuleWatches {
        connection: connection.clone(),
        cluster_config,
        metrics: metrics.watches.clone(),
        readiness: supervisor.readiness().clone(),
        reports: sender.clone(),
    };
    let observer = WatchObserver {
        metrics: metrics.watches.clone(),
        condition: supervisor.readiness().condition(NAMESPACES),
    };
    let (connection, needs) = (connection.clone(), rules.needs());
    supervisor.spawn_required("rule watches", watches.run(rules));
    supervisor.spawn_required("namespace watch", async move {
        watch_namespaces(&connection, keys, needs, observer, sender).await;
    });
    RuleFollower {
        writer,
        reports,
        service_accounts,
    }
}

/// Applies the rules of the flags alone, without a cluster. There are no reports.
pub fn from_flags(
    options: FollowOptions,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> RuleFollower {
    let current = CurrentRules::default();
    current.register(registry);
    let writer = writer(&options);
    publish(&writer, options, &current, supervisor);
    let (_, reports) = mpsc::channel(1);
    RuleFollower {
        writer,
        reports,
        service_accounts: None,
    }
}

fn writer(options: &FollowOptions) -> RuleStoreWriter {
    let (point, scope, session_seconds) = match options.purpose {
        Purpose::Admission => (
            EnforcementPoint::Admission,
            SessionScope::Workload,
            NO_SESSION_SECONDS,
        ),
        Purpose::Credentials {
            scope,
            session_seconds,
        } => (EnforcementPoint::Agent, scope, session_seconds),
    };
    let mut writer = RuleStoreWriter::new(options.flags.clone(), point, scope, session_seconds);
    if options.purpose == Purpose::Admission {
        // The node's own roles are not detected: those in the configuration are known.
        writer.set_aws_environment(AwsEnvironment::default());
    }
    writer
}

/// Exports the rules to metrics, the log and readiness.
fn publish(
    writer: &RuleStoreWriter,
    options: FollowOptions,
    current: &CurrentRules,
    supervisor: &mut Supervisor,
) -> RuleStore {
    let rules = writer.rules();
    current.set(Some(rules.clone()));
    let layers = match options.purpose {
        Purpose::Admission => None,
        Purpose::Credentials { .. } => Some(supervisor.readiness().condition("layers")),
    };
    supervisor.spawn(report(rules.clone(), options.given, layers));
    rules
}

/// Returns the names of the readiness conditions of all watches that [`follow`] starts.
pub fn conditions() -> impl Iterator<Item = &'static str> {
    CONDITIONS.into_iter().chain([NAMESPACES, SERVICE_ACCOUNTS])
}

impl RuleFollower {
    /// Applies all reports, for a process that only reads the rules. `condition` fails until they
    /// are loaded, and has a note while required rules are missing.
    pub async fn run(mut self, condition: Condition) {
        loop {
            match (self.writer.not_synced(), self.writer.missing()) {
                (Some(part), _) => condition.fail(part.as_str()),
                // The webhook responds and denies with this message. If the Service had no ready
                // endpoint, users would only learn that the webhook cannot be called.
                (None, Some(missing)) => condition.note(&*missing),
                (None, None) => condition.ok(),
            }
            let Some(report) = self.reports.recv().await else {
                return;
            };
            self.writer.apply(report);
        }
    }
}

impl NamespaceMessage for Report {
    fn change(change: Change<Namespace>) -> Self {
        Self::Rules(RuleUpdate::Namespaces(change))
    }

    fn retain(names: HashSet<Arc<str>>) -> Self {
        Self::Rules(RuleUpdate::RetainNamespaces(names))
    }
}
