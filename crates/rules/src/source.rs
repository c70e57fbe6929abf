//! Following what the rules need of a cluster: its configuration always, grants, policies and
//! replicated objects as the configuration and the policies ask for them.

use std::collections::{BTreeSet, HashMap};

use rolegate_core::rulebook::RuleUpdate;
use rolegate_kube::client::Connection;
use rolegate_kube::cluster_config::{ConfigUse, watch_cluster_config};
use rolegate_kube::config_maps::watch_config_maps;
use rolegate_kube::grants::watch_grants;
use rolegate_kube::replicated::watch_replicated;
use rolegate_kube::watch::{Reporting, WatchMetrics};
use rolegate_runtime::readiness::{Condition, Readiness};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::keeper::Report;
use crate::rules::Rules;
use crate::snapshot::{Needs, Watch};

const CONFIG: &str = "cluster configuration";
const GRANTS: &str = "grants";
const POLICIES: &str = "policies";
const REPLICATED: &str = "replicated objects";
/// The names of the readiness conditions of all watches.
pub const CONDITIONS: [&str; 4] = [CONFIG, GRANTS, POLICIES, REPLICATED];

/// What is followed.
#[derive(Debug)]
pub struct RuleSources {
    /// To the API server.
    pub connection: Connection,
    /// Whether the cluster's configuration counts.
    pub cluster_config: ConfigUse,
    /// Counts.
    pub metrics: WatchMetrics,
    /// Told how it goes.
    pub readiness: Readiness,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
}

/// The name of a watch's condition. Watches of one kind share one.
fn condition(watch: &Watch) -> &'static str {
    match watch {
        Watch::Config => CONFIG,
        Watch::Grants => GRANTS,
        Watch::ConfigMaps(_) => POLICIES,
        Watch::Replicated(_) => REPLICATED,
    }
}

impl RuleSources {
    /// Follows what `rules` need, as it changes, until nobody listens to the reports.
    pub async fn run(self, rules: Rules) {
        let mut changes = rules.changes();
        let mut running: HashMap<Watch, AbortOnDropHandle<()>> = HashMap::new();
        let mut conditions: HashMap<&'static str, Condition> = HashMap::new();
        loop {
            changes.mark_unchanged();
            let wanted = wanted(&rules.load().needs);
            for (watch, task) in running.extract_if(|watch, _| !wanted.contains(watch)) {
                // Nothing that it still says may come after the report that it is over.
                task.abort();
                let _ = task.await;
                if let Some(condition) = conditions.get(condition(&watch)) {
                    condition.ok();
                }
                if self.reports.send(Report::Unfollowed(watch)).await.is_err() {
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
        let reporting = Reporting {
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
