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
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::events::EventRecorder;
use rolegate_kube::watch::WatchObserver;
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_rules::store::RuleStoreWriter;
use rolegate_rules::{FollowMetrics, FollowOptions, Purpose, follow};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::supervisor::Supervisor;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::leader_task::LeaderTask;
use registration::Registrar;
use status::Statuses;

/// Changes of pods that may wait to be taken.
const UPDATES: usize = 256;
/// How long changes are gathered before what they led to is written.
const GATHER: Duration = Duration::from_millis(500);
/// How often everything is looked at though nothing changed: somebody may have overwritten it.
const AGAIN: Duration = Duration::from_secs(60);
/// The time that loading may take before the registration follows the configuration without it.
const LOADING_GRACE: Duration = Duration::from_secs(10);
/// The name of the condition of the pods' watch.
const PODS: &str = "pods";
/// The name of the condition of the webhook's registration.
const REGISTRATION: &str = "registration";

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
    metrics: FollowMetrics,
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
        metrics: FollowMetrics,
        readiness: Readiness,
        events: EventRecorder,
        clock: Clock,
    ) -> Self {
        Self {
            options,
            connection,
            metrics,
            readiness,
            events,
            clock,
        }
    }

    async fn follow(&self, leading: CancellationToken) {
        // Dropped with this call, and all watches with it.
        let mut watches = Supervisor::with_readiness(self.readiness.clone());
        let options = FollowOptions {
            flags: self.options.flags.clone(),
            given: self.options.given.clone(),
            cluster_config: self.options.cluster_config,
            keys: self.options.keys.clone(),
            purpose: Purpose::Admission,
        };
        let follower = follow(&self.connection, options, &self.metrics, &mut watches);
        let (mut writer, mut reports) = (follower.writer, follower.reports);
        let mut updates = self.watch_pods(&writer, &mut watches);

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
                    pods.update(update);
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

    fn watch_pods(
        &self,
        writer: &RuleStoreWriter,
        watches: &mut Supervisor,
    ) -> mpsc::Receiver<Update> {
        let (sender, updates) = mpsc::channel(UPDATES);
        let observer = WatchObserver {
            metrics: self.metrics.watches.clone(),
            condition: self.readiness.condition(PODS),
        };
        let (connection, keys) = (self.connection.clone(), self.options.keys.clone());
        let needs = writer.rules().needs();
        watches.spawn_required("pod watch", async move {
            watch_pods(&connection, &Scope::Cluster, keys, needs, observer, sender).await;
        });
        updates
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
            self.metrics.rules.set(None);
            // A replica that doesn't lead watches nothing, and is ready.
            for name in rolegate_rules::conditions().chain([PODS, REGISTRATION]) {
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
    fn update(&mut self, update: Update) {
        match update {
            Update::Workloads(Change::Snapshot(all)) => {
                self.0 = all.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
            }
            Update::Workloads(Change::Apply(pod)) => {
                self.0.insert(pod.uid.clone(), pod);
            }
            Update::Workloads(Change::Delete(pod)) => {
                self.0.remove(&pod.uid);
            }
            Update::RetainWorkloads(uids) => self.0.retain(|uid, _| uids.contains(uid)),
            // They are reports of the rules.
            Update::Namespaces(_) | Update::RetainNamespaces(_) => {}
        }
    }

    fn all(&self) -> impl Iterator<Item = &Workload> {
        self.0.values()
    }
}
