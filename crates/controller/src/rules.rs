//! What the leader does about rules: it follows them as every other part does, writes how each
//! fares where its author looks, and keeps the gate's registration up to them.

mod registration;
mod status;

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::NotLoaded;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::rule_set_builder::{ClusterConfig, Facts, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::events::EventRecorder;
use rolegate_kube::namespaces::watch_namespaces;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::in_force::{self, GivenRuleFlags};
use rolegate_rules::metrics::CurrentRules;
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_rules::watches::{CONDITIONS, RuleWatches};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::leader_task::LeaderTask;
use registration::Registrar;
use status::Statuses;

/// Reports that may wait to be taken.
const REPORTS: usize = 256;
/// How long changes are gathered before what they led to is written.
const GATHER: Duration = Duration::from_millis(500);
/// How often everything is looked at though nothing changed: somebody may have overwritten it.
const AGAIN: Duration = Duration::from_secs(60);
/// The time that loading may take before the registration follows the configuration without it.
const LOADING_GRACE: Duration = Duration::from_secs(10);
/// The name of the condition of the webhook's registration.
const REGISTRATION: &str = "registration";
/// The life of a session that is only thought of.
const SESSION_SECONDS: u32 = 3600;

/// Options of [`StatusTask`].
#[derive(Debug, Clone)]
pub struct RuleOptions {
    /// The rules as far as flags fix them: they count where the cluster has no configuration.
    pub flags: RuleConfig,
    /// The flags and variables about rules that were given, by name.
    pub given: GivenRuleFlags,
    /// Whether the cluster's configuration is demanded.
    pub cluster_config: ConfigMode,
    /// The annotations' keys.
    pub keys: AnnotationKeys,
    /// Namespace of the gate.
    pub namespace: String,
    /// Name of the ValidatingWebhookConfiguration.
    pub webhook: String,
    /// Whether it is made where it is missing.
    pub register: bool,
    /// Name of the webhook's Service.
    pub service: String,
    /// Name of the Secret that holds its certificate.
    pub secret: String,
}

/// Writes how rules fare, and keeps the gate's registration.
pub struct StatusTask {
    options: RuleOptions,
    connection: Connection,
    metrics: WatchMetrics,
    current: CurrentRules,
    readiness: Readiness,
    events: EventRecorder,
    clock: Clock,
}

impl fmt::Debug for StatusTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusTask").finish_non_exhaustive()
    }
}

impl StatusTask {
    /// Nothing is done before [`LeaderTask::run`]. Needs `list` and `watch` of pods, namespaces, our own
    /// kinds and ConfigMaps of policies, `patch` of the status of our own kinds and of those
    /// ConfigMaps, `get`, `create` and `update` of the ValidatingWebhookConfiguration, and to make it
    /// `list` of EndpointSlices and `get` of the Secret in the webhook's namespace.
    pub fn new(
        options: RuleOptions,
        connection: Connection,
        metrics: WatchMetrics,
        current: CurrentRules,
        readiness: Readiness,
        events: EventRecorder,
        clock: Clock,
    ) -> Self {
        Self {
            options,
            connection,
            metrics,
            current,
            readiness,
            events,
            clock,
        }
    }

    async fn follow(&self, leading: CancellationToken) {
        let mut writer = RuleStoreWriter::new(
            self.options.flags.clone(),
            EnforcementPoint::Admission,
            SessionScope::Workload,
            SESSION_SECONDS,
        );
        writer.learn(Facts::default());
        if self.options.cluster_config != ConfigMode::Off {
            writer.apply(Report::RuleStore(RuleUpdate::Config(ClusterConfig::Unseen)));
        }
        let (reporter, mut reports) = mpsc::channel(REPORTS);
        let (sender, mut updates) = mpsc::channel(REPORTS);
        // Dropped with this call, and all watches with it.
        let mut watches = JoinSet::new();
        self.watch(&writer, reporter, sender, &mut watches);
        self.current.set(Some(writer.rules()));
        let given = self.options.given.clone();
        watches.spawn(in_force::report(writer.rules(), given, None));

        let mut pods = Pods::default();
        let mut statuses = Statuses::new(self.client(), self.events.clone());
        let condition = self.readiness.condition(REGISTRATION);
        let mut registrar = Registrar::new(self.client(), &self.options, condition);
        // What may not be read never loads, and must not keep the registration from following the
        // configuration.
        let mut loading_since = None;
        let mut due = Box::pin(tokio::time::sleep(GATHER));
        loop {
            tokio::select! {
                () = leading.cancelled() => return,
                Some(report) = reports.recv() => {
                    writer.apply(report);
                    soon(&mut due);
                }
                Some(update) = updates.recv() => {
                    match update {
                        Update::Workloads(change) => pods.change(change),
                        Update::RetainWorkloads(uids) => pods.0.retain(|uid, _| uids.contains(uid)),
                        Update::RetainNamespaces(names) => {
                            writer.apply(Report::RuleStore(RuleUpdate::RetainNamespaces(names)));
                        }
                        Update::Namespaces(change) => {
                            writer.apply(Report::RuleStore(RuleUpdate::Namespaces(change)));
                        }
                    }
                    soon(&mut due);
                }
                () = &mut due => {
                    let now = tokio::time::Instant::now();
                    let unseen = writer.unseen();
                    let is_loading = unseen.is_some_and(|part| part != NotLoaded::Config);
                    loading_since = is_loading.then(|| loading_since.unwrap_or(now));
                    let is_overdue = loading_since.is_some_and(|since| now - since >= LOADING_GRACE);
                    let again = match unseen {
                        Some(NotLoaded::Config) => AGAIN,
                        Some(_) if !is_overdue => LOADING_GRACE,
                        _ => {
                            // First what closes: statuses of many grants take their time.
                            let again = registrar.keep(&writer).await;
                            statuses.write_config(&writer, registrar.error(), self.clock.now()).await;
                            if unseen.is_none() {
                                statuses.write(&writer, pods.all(), self.clock.now()).await;
                            }
                            again.unwrap_or(AGAIN)
                        }
                    };
                    due.as_mut().reset(tokio::time::Instant::now() + again);
                }
            }
        }
    }

    fn watch(
        &self,
        writer: &RuleStoreWriter,
        reports: mpsc::Sender<Report>,
        updates: mpsc::Sender<Update>,
        watches: &mut JoinSet<()>,
    ) {
        let sources = RuleWatches {
            connection: self.connection.clone(),
            cluster_config: self.options.cluster_config,
            metrics: self.metrics.clone(),
            readiness: self.readiness.clone(),
            reports,
        };
        let rules = writer.rules();
        watches.spawn(sources.run(rules.clone()));
        let reporting = |name| WatchObserver {
            metrics: self.metrics.clone(),
            condition: self.readiness.condition(name),
        };
        let (connection, keys) = (self.connection.clone(), self.options.keys.clone());
        let (report, sender) = (reporting("namespaces"), updates.clone());
        let needs = rules.needs();
        watches.spawn(async move {
            watch_namespaces(&connection, keys, needs, report, sender).await;
        });
        let (connection, keys) = (self.connection.clone(), self.options.keys.clone());
        let (report, needs) = (reporting("pods"), rules.needs());
        watches.spawn(async move {
            watch_pods(&connection, &Scope::Cluster, keys, needs, report, updates).await;
        });
    }

    fn client(&self) -> Client {
        self.connection.client()
    }
}

impl LeaderTask for StatusTask {
    fn name(&self) -> &'static str {
        "rules"
    }

    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.follow(leading).await;
            self.current.set(None);
            // A replica that doesn't lead watches nothing, and is ready.
            let own = ["namespaces", "pods", REGISTRATION];
            for name in CONDITIONS.into_iter().chain(own) {
                self.readiness.condition(name).ok();
            }
        })
    }
}

fn soon(due: &mut std::pin::Pin<Box<tokio::time::Sleep>>) {
    let soon = tokio::time::Instant::now() + GATHER;
    if due.deadline() > soon {
        due.as_mut().reset(soon);
    }
}

/// The pods of the cluster, by UID.
#[derive(Debug, Default)]
struct Pods(std::collections::HashMap<std::sync::Arc<str>, Workload>);

impl Pods {
    fn change(&mut self, change: Change<Workload>) {
        match change {
            Change::Snapshot(all) => {
                self.0 = all.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
            }
            Change::Apply(pod) => {
                self.0.insert(pod.uid.clone(), pod);
            }
            Change::Delete(pod) => {
                self.0.remove(&pod.uid);
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Workload> {
        self.0.values()
    }
}
