//! The leader's work on rules: it watches the rules, writes the status of each rule to the rule's
//! own object, and updates the ValidatingWebhookConfiguration to match the rules.

mod registration;
mod status;

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::NotSynced;
use rolegate_core::layer::Mode;
use rolegate_core::workload::{Change, Update, Workload};
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::events::EventRecorder;
use rolegate_kube::watch::WatchObserver;
use rolegate_kube::workloads::{Scope, watch_pods};
use rolegate_review::mutating_configuration::FailurePolicy;
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

/// Capacity of the channel of pods' changes. The watch waits while the channel is full.
const UPDATES: usize = 256;
/// The delay between a change and the writes that follow from it, so that a burst of changes causes
/// one write of each status.
const GATHER: Duration = Duration::from_millis(500);
/// The interval of reconciliation without a change. Another client may have overwritten a status or
/// the webhook configuration.
const AGAIN: Duration = Duration::from_secs(60);
/// The time that rules may take to load. After it, the webhook configuration is updated without the
/// rules that are still missing, since rules that the controller may not read never load.
const LOADING_GRACE: Duration = Duration::from_secs(10);
/// The name of the condition of the pods' watch.
const PODS: &str = "pods";
/// The name of the condition of the webhook's registration.
const REGISTRATION: &str = "registration";

/// Options of [`StatusTask`].
#[derive(Debug, Clone)]
pub struct RuleOptions {
    /// The rules that flags set. They apply if the cluster has no RolegateConfig.
    pub flags: RuleConfig,
    /// The names of the flags and variables about rules that were set.
    pub given: GivenRuleFlags,
    /// The use of the cluster's RolegateConfig: required, optional or off.
    pub cluster_config: ConfigMode,
    /// The keys of annotations.
    pub keys: AnnotationKeys,
    /// Namespace of the webhook.
    pub namespace: String,
    /// Name of the ValidatingWebhookConfiguration.
    pub webhook: String,
    /// True if the controller creates a missing ValidatingWebhookConfiguration.
    pub register: bool,
    /// Name of the webhook's Service.
    pub service: String,
    /// Name of the Secret that holds the webhook's certificate.
    pub secret: String,
    /// The registration of the mutating webhook. `None`: credentials are not injected.
    pub injection: Option<InjectionRegistration>,
}

/// The registration of the injection of credentials into pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectionRegistration {
    /// The treatment of pods while the mutating webhook is unavailable.
    pub on_failure: FailurePolicy,
    /// The mode of the check that pods have the credentials of their service accounts.
    pub require: Mode,
}

/// Writes the statuses of rules and updates the ValidatingWebhookConfiguration.
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
    /// Creates the task, which starts with [`LeaderTask::run`]. It needs the rights to `list` and
    /// `watch` pods, namespaces, rolegate's own kinds and ConfigMaps of policies; to `patch` those
    /// ConfigMaps and the status of the own kinds; and to `get`, `create` and `update` the
    /// webhook configurations, and to `delete` the mutating one. Creation also needs `list` of EndpointSlices and `get` of
    /// the Secret in the webhook's namespace.
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
        // Dropping the supervisor at the end of this call aborts all watches.
        let mut watches = Supervisor::with_readiness(self.readiness.clone());
        let options = FollowOptions {
            flags: self.options.flags.clone(),
            given: self.options.given.clone(),
            cluster_config: self.options.cluster_config,
            keys: self.options.keys.clone(),
            purpose: Purpose::Admission,
            service_accounts: None,
        };
        let follower = follow(&self.connection, options, &self.metrics, &mut watches);
        let (mut writer, mut reports) = (follower.writer, follower.reports);
        let mut updates = self.watch_pods(&writer, &mut watches);

        let mut pods = Pods::default();
        let mut statuses = Statuses::new(self.client(), self.events.clone());
        let condition = self.readiness.condition(REGISTRATION);
        let mut registrar = Registrar::new(self.client(), &self.options, condition);
        // Rules that the controller may not read never load. They must not block updates of the
        // webhook configuration for ever.
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
                    let not_synced = writer.not_synced();
                    let is_loading = not_synced.is_some_and(|part| part != NotSynced::Config);
                    loading_since = is_loading.then(|| loading_since.unwrap_or(now));
                    let is_overdue = loading_since.is_some_and(|since| now - since >= LOADING_GRACE);
                    let again = match not_synced {
                        Some(NotSynced::Config) => AGAIN,
                        Some(_) if !is_overdue => LOADING_GRACE,
                        _ => {
                            // The webhook configuration comes first, because it restricts access.
                            // Writing the statuses of many grants takes long.
                            let again = registrar.keep(&writer).await;
                            statuses.write_config(&writer, registrar.error(), self.clock.now()).await;
                            if not_synced.is_none() {
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
            // A replica that does not lead has no watches and must still count as ready.
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
