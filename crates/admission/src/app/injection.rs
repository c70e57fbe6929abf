//! Starts the mutating webhook: the watches of service accounts and of the EKS webhook's ConfigMap,
//! and its file of container credentials.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rolegate_core::layer::Mode;
use rolegate_core::names;
use rolegate_core::service_account::ServiceAccount;
use rolegate_core::workload::Change;
use rolegate_kube::client::Connection;
use rolegate_kube::config_maps::{ConfigMap, watch_config_map};
use rolegate_kube::events::{EventRecorder, recorder_as};
use rolegate_kube::service_accounts::watch_service_accounts;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_review::mutation::InjectionSettings;
use rolegate_review::mutation::config_map::{KEY, NAME, PodIdentityConfig};
use rolegate_review::mutation::source::ContainerIdentities;
use rolegate_rules::rules::RuleStore;
use rolegate_runtime::metrics::Metrics;
use rolegate_runtime::readiness::{Block, Condition, Health};
use rolegate_runtime::supervisor::Supervisor;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::injection::accounts::Accounts;
use crate::injection::{Injection, InjectionInputs, Report, Reporter};
use crate::metrics::compatible::CompatibleMetrics;
use crate::metrics::injection::InjectionMetrics;
use crate::server::Mutating;

/// Capacity of the channels of changes. The watch waits while a channel is full.
const QUEUE_SIZE: usize = 256;
/// Interval at which the file of container credentials is read.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum size of the file of container credentials, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The source of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleSource {
    /// The cluster's objects.
    Cluster,
    /// The flags alone. Needs no right to read namespaces, grants and the configuration.
    Flags,
}

/// The validated options of the mutating webhook.
#[derive(Debug, Clone)]
pub struct InjectionOptions {
    /// The settings of the injection.
    pub settings: InjectionSettings,
    /// Time for which a pod waits for the role of a new service account.
    pub wait: Duration,
    /// The namespace of the EKS webhook's ConfigMap. `None`: it is not read.
    pub config_map_namespace: Option<String>,
    /// The EKS webhook's file of service accounts with container credentials.
    pub identities: Option<PathBuf>,
    /// The mode of the check that pods have the credentials of their service accounts.
    pub require: Mode,
    /// The name of this replica in Events. `None`: no Events are written.
    pub events_as: Option<String>,
    /// True to serve the mutating webhook alone, with metrics under the EKS webhook's names too.
    pub is_compatible: bool,
}

impl InjectionOptions {
    /// Starts all tasks.
    pub(super) fn start(
        self,
        connection: &Connection,
        rules: &RuleStore,
        watches: &WatchMetrics,
        metrics: &mut Metrics,
        supervisor: &mut Supervisor,
    ) -> Mutating {
        let compatible = self
            .is_compatible
            .then(|| CompatibleMetrics::register(metrics.common()));
        let reporter = self.reporter(connection, metrics, supervisor);
        let metrics = InjectionMetrics::register(metrics.ours(), compatible);
        let tasks = Tasks {
            connection,
            watches,
            supervisor: &mut *supervisor,
        };
        let (accounts, config_map, identities) = tasks.start(&self);
        supervisor.spawn(settle(
            accounts.clone(),
            self.wait,
            supervisor
                .readiness()
                .block("new service accounts are not known yet"),
        ));
        let injection = Injection::new(InjectionInputs {
            settings: self.settings,
            wait: self.wait,
            rules: rules.clone(),
            accounts,
            config_map,
            identities,
            metrics: metrics.clone(),
            reporter,
        });
        supervisor.spawn(injection.clone().follow_changes());
        Mutating {
            injection,
            metrics,
            readiness: supervisor.readiness().clone(),
            require: self.require,
            is_alone: self.is_compatible,
        }
    }

    fn reporter(
        &self,
        connection: &Connection,
        metrics: &mut Metrics,
        supervisor: &mut Supervisor,
    ) -> Reporter {
        let Some(instance) = self.events_as.clone() else {
            return Arc::new(|_| {});
        };
        let client = connection.client();
        let (events, writer) = recorder_as(names::ADMISSION, client, instance, metrics.ours());
        supervisor.spawn(writer.run());
        Arc::new(move |report| publish(&events, report))
    }
}

fn publish(events: &EventRecorder, report: &Report) {
    let about = (&report.namespace, &*report.account, &report.uid);
    events.report_missing_injection(about, &report.message);
}

type ConfigMapReceiver = watch::Receiver<Option<Arc<PodIdentityConfig>>>;
type IdentitiesReceiver = watch::Receiver<Option<Arc<ContainerIdentities>>>;

/// Starts the sources.
struct Tasks<'a> {
    connection: &'a Connection,
    watches: &'a WatchMetrics,
    supervisor: &'a mut Supervisor,
}

impl Tasks<'_> {
    fn start(
        mut self,
        options: &InjectionOptions,
    ) -> (Accounts, ConfigMapReceiver, IdentitiesReceiver) {
        let accounts = self.accounts(options.settings.annotation_prefix.clone());
        let (sender, config_map) = watch::channel(None);
        match options.config_map_namespace.clone() {
            Some(namespace) => self.config_map(namespace, sender),
            None => drop(sender.send(Some(Arc::default()))),
        }
        let (sender, identities) = watch::channel(None);
        match options.identities.clone() {
            Some(path) => {
                let condition = self
                    .supervisor
                    .readiness()
                    .condition("container credentials file");
                self.supervisor
                    .spawn_required("container credentials file", async move {
                        follow_file(&path, &sender, &condition).await;
                    });
            }
            None => drop(sender.send(Some(Arc::default()))),
        }
        (accounts, config_map, identities)
    }

    fn observer(&self, condition: &'static str) -> WatchObserver {
        WatchObserver {
            metrics: self.watches.clone(),
            condition: self.supervisor.readiness().condition(condition),
        }
    }

    fn accounts(&mut self, prefix: String) -> Accounts {
        let accounts = Accounts::default();
        let (sender, mut changes) = mpsc::channel::<Change<ServiceAccount>>(QUEUE_SIZE);
        let observer = self.observer("service accounts");
        let connection = self.connection.clone();
        self.supervisor
            .spawn_required("service account watch", async move {
                watch_service_accounts(&connection, prefix, observer, |change| change, sender)
                    .await;
            });
        let writer = accounts.clone();
        self.supervisor
            .spawn_required("service accounts", async move {
                while let Some(change) = changes.recv().await {
                    writer.apply(change);
                }
            });
        accounts
    }

    fn config_map(
        &mut self,
        namespace: String,
        config: watch::Sender<Option<Arc<PodIdentityConfig>>>,
    ) {
        let (sender, mut changes) = mpsc::channel::<Change<ConfigMap>>(QUEUE_SIZE);
        let observer = self.observer("pod identity ConfigMap");
        let connection = self.connection.clone();
        self.supervisor
            .spawn_required("pod identity ConfigMap watch", async move {
                let name = (&*namespace, NAME);
                watch_config_map(&connection, name, observer, |change| change, sender).await;
            });
        self.supervisor
            .spawn_required("pod identity ConfigMap", async move {
                while let Some(change) = changes.recv().await {
                    apply(change, &config);
                }
            });
    }
}

/// Holds `block` until all service accounts of the first list are older than the time for which pods
/// wait. A role may follow the creation of such a service account, whose time is not known.
async fn settle(accounts: Accounts, wait: Duration, block: Block) {
    let mut changes = accounts.changes();
    while !accounts.has_synced() {
        if changes.changed().await.is_err() {
            return;
        }
    }
    tokio::time::sleep(wait).await;
    drop(block);
}

/// Applies a change of the ConfigMap. A ConfigMap that is not JSON keeps the entries before it, as
/// in the EKS webhook; a deleted one has none.
fn apply(change: Change<ConfigMap>, config: &watch::Sender<Option<Arc<PodIdentityConfig>>>) {
    let map = match change {
        Change::Snapshot(maps) => maps.into_iter().find(|map| &*map.name == NAME),
        Change::Apply(map) => Some(map),
        Change::Delete(_) => None,
    };
    let text = map.as_ref().and_then(|map| map.data.get(KEY));
    match PodIdentityConfig::parse(text.map_or("", String::as_str)) {
        Ok(parsed) => {
            for fault in parsed.faults() {
                warn!(config_map = NAME, reason = fault, "ignoring an entry");
            }
            info!(config_map = NAME, entries = parsed.len(), "loaded");
            config.send_replace(Some(Arc::new(parsed)));
        }
        Err(reason) => {
            warn!(config_map = NAME, reason, "cannot read the ConfigMap");
            config.send_modify(|config| {
                config.get_or_insert_default();
            });
        }
    }
}

/// Reads the file repeatedly, since a mounted ConfigMap is replaced by a new folder. Never returns.
async fn follow_file(
    path: &Path,
    identities: &watch::Sender<Option<Arc<ContainerIdentities>>>,
    condition: &Condition,
) {
    condition.fail("the file of container credentials is not read yet");
    loop {
        let read = match read(path).await {
            Ok(text) => ContainerIdentities::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Default::default()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(parsed) => {
                condition.ok();
                identities.send_if_modified(|known| {
                    let is_new = known.as_deref() != Some(&parsed);
                    if is_new {
                        *known = Some(Arc::new(parsed));
                    }
                    is_new
                });
            }
            // The identities before it stay in force.
            Err(reason) => {
                let reason = format!("{}: {reason}", path.display());
                let health = if identities.borrow().is_some() {
                    Health::Noted(reason.clone())
                } else {
                    Health::Failing(reason.clone())
                };
                if condition.set(health) {
                    warn!(reason, "cannot read the file of container credentials");
                }
            }
        }
        tokio::time::sleep(FILE_INTERVAL).await;
    }
}

async fn read(path: &Path) -> std::io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut text = String::new();
    let mut bounded = file.take(MAX_FILE_BYTES + 1);
    if bounded.read_to_string(&mut text).await? as u64 > MAX_FILE_BYTES {
        let sentence = format!("the file has more than {MAX_FILE_BYTES} bytes");
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            sentence,
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(config: &str) -> ConfigMap {
        ConfigMap {
            name: NAME.into(),
            data: [(KEY.to_owned(), config.to_owned())].into(),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_broken_config_map_keeps_the_entries_before_it() {
        let (sender, receiver) = watch::channel(None);
        let entries = |change| {
            apply(change, &sender);
            receiver.borrow().as_ref().map(|config| config.len())
        };
        let good = || config_map(r#"{"shop/api": {"RoleARN": "arn"}}"#);
        assert_eq!(entries(Change::Snapshot(Vec::new())), Some(0));
        assert_eq!(entries(Change::Apply(good())), Some(1));
        assert_eq!(entries(Change::Apply(config_map("{"))), Some(1));
        assert_eq!(entries(Change::Delete(good())), Some(0));
    }

    #[tokio::test]
    async fn a_file_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(read(&path).await.is_err());
        file.set_len(MAX_FILE_BYTES).unwrap();
        assert!(read(&path).await.is_ok());
    }
}
