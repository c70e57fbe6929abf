//! Watches on the objects that rules need: always the configuration, and grants, policies and
//! replicated objects as the configuration and policies require.

use std::collections::{BTreeSet, HashMap};

use rolegate_core::rule_set_builder::RuleUpdate;
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::{ConfigMode, watch_cluster_config};
use rolegate_kube::config_maps::watch_config_maps;
use rolegate_kube::grants::watch_grants;
use rolegate_kube::replicated::watch_replicated;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_runtime::readiness::{Condition, Readiness};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::rules::RuleStore;
use crate::snapshot::{Needs, Watch};
use crate::store::Report;

const CONFIG: &str = "cluster configuration";
const GRANTS: &str = "grants";
const POLICIES: &str = "policies";
const REPLICATED: &str = "replicated objects";
/// The names of the readiness conditions of all watches.
pub(crate) const CONDITIONS: [&str; 4] = [CONFIG, GRANTS, POLICIES, REPLICATED];

/// The watches and their settings.
#[derive(Debug)]
pub(crate) struct RuleWatches {
    /// The connection to the API server.
    pub(crate) connection: Connection,
    /// The use of the cluster's configuration.
    pub(crate) cluster_config: ConfigMode,
    /// Metrics of the watches.
    pub(crate) metrics: WatchMetrics,
    /// The process's readiness.
    pub(crate) readiness: Readiness,
    /// The channel for reports.
    pub(crate) reports: mpsc::Sender<Report>,
}

/// Returns the name of a watch's readiness condition. Watches of one kind share a condition.
fn condition(watch: &Watch) -> &'static str {
    match watch {
        Watch::Config => CONFIG,
        Watch::Grants => GRANTS,
        Watch::ConfigMaps(_) => POLICIES,
        Watch::Replicated(_) => REPLICATED,
    }
}

impl RuleWatches {
    /// Runs the watches that `rules` need, and adjusts them when the needs change, until the
    /// receiver of the reports is dropped.
    pub(crate) async fn run(self, rules: RuleStore) {
        let mut changes = rules.changes();
        let mut running: HashMap<Watch, AbortOnDropHandle<()>> = HashMap::new();
        let mut conditions: HashMap<&'static str, Condition> = HashMap::new();
        loop {
            changes.mark_unchanged();
            let wanted = wanted(&rules.load().needs);
            for (watch, task) in running.extract_if(|watch, _| !wanted.contains(watch)) {
                // Awaited so that the report of its end is the last one of the watch.
                task.abort();
                let _ = task.await;
                if let Some(condition) = conditions.get(condition(&watch)) {
                    condition.ok();
                }
                if self.reports.send(Report::Unwatched(watch)).await.is_err() {
                    return;
                }
            }
            for watch in wanted {
                if running.contains_key(&watch) {
                    continue;
                }
                let name = condition(&watch);
                let condition = conditions
                    .entry(name)
                    .or_insert_with(|| self.readiness.condition(name));
                let task = tokio::spawn(self.watch(watch.clone(), condition.clone()));
                running.insert(watch, AbortOnDropHandle::new(task));
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.reports.closed() => return,
            }
        }
    }

    fn watch(
        &self,
        watch: Watch,
        condition: Condition,
    ) -> impl Future<Output = ()> + Send + 'static {
        let connection = self.connection.clone();
        let cluster_config = self.cluster_config;
        let reports = self.reports.clone();
        let reporting = WatchObserver {
            metrics: self.metrics.clone(),
            condition,
        };
        async move {
            match watch {
                Watch::Config => {
                    let wrap = |config| Report::Rules(RuleUpdate::Config(config));
                    watch_cluster_config(&connection, cluster_config, reporting, wrap, reports)
                        .await;
                }
                Watch::Grants => {
                    let wrap = |change| Report::Rules(RuleUpdate::Grants(change));
                    watch_grants(&connection, reporting, wrap, reports).await;
                }
                Watch::ConfigMaps(namespace) => {
                    let wrap = |change| Report::ConfigMaps(namespace.clone(), change);
                    watch_config_maps(&connection, &namespace, reporting, wrap, reports).await;
                }
                Watch::Replicated(kind) => {
                    let wrap = |change| Report::Replicated(kind.clone(), change);
                    watch_replicated(&connection, &kind, reporting, wrap, reports).await;
                }
            }
        }
    }
}

fn wanted(needs: &Needs) -> BTreeSet<Watch> {
    let maps = needs.config_maps.iter().cloned().map(Watch::ConfigMaps);
    let replicated = needs.replicated.iter().cloned().map(Watch::Replicated);
    let grants = needs.grants.then_some(Watch::Grants);
    [Watch::Config]
        .into_iter()
        .chain(grants)
        .chain(maps)
        .chain(replicated)
        .collect()
}
