//! Removes a startup taint from nodes whose agent is ready.
//!
//! Nodes register with the taint (kubelet's `--register-with-taints`, Karpenter's `startupTaints`),
//! so that no pod is scheduled to a node before its agent serves. The controller removes the taint
//! and never adds it: agents have no rights on nodes, since the token of an agent with such rights
//! would be a way from a stolen node to all others.

mod state;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_kube::chain;
use rolegate_runtime::readiness::Condition;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::leader_task::LeaderTask;
use state::{NodesAndAgents, taints_with};

/// Timeout of a watch, in seconds, after which it is resumed.
const WATCH_SECONDS: u32 = 150;
/// Timeout of the requests about one node.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Delay after a failed request.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Options of [`StartupTaint`].
#[derive(Debug, Clone)]
pub struct StartupTaintOptions {
    /// The taint's key. All taints with this key are removed, whatever their value and effect.
    pub key: String,
    /// The namespace of the agents.
    pub namespace: String,
    /// The label selector of the agents' pods.
    pub selector: String,
}

/// The metrics of startup taints.
#[derive(Debug, Clone, Default)]
pub struct StartupTaintMetrics {
    removed: Counter,
    waiting: Gauge<i64, AtomicI64>,
}

impl StartupTaintMetrics {
    /// Registers `startup_taints_removed_total` and `startup_tainted_nodes`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "startup_taints_removed",
            "Nodes whose startup taint the controller removed, since their agent was ready",
            metrics.removed.clone(),
        );
        registry.register(
            "startup_tainted_nodes",
            "Nodes that have the startup taint, as their agent is not ready yet",
            metrics.waiting.clone(),
        );
        metrics
    }
}

/// The reason why a taint cannot be removed.
#[derive(Debug, thiserror::Error)]
enum TaintError {
    #[error("cannot {verb} node {node}: {}", chain(.source))]
    Kube {
        verb: &'static str,
        node: String,
        source: Box<kube::Error>,
    },
    #[error(
        "cannot remove the taint of node {node}: no response from the API server within {REQUEST_TIMEOUT:?}"
    )]
    TimedOut { node: String },
}

/// The leader task that removes startup taints.
pub struct StartupTaint {
    options: StartupTaintOptions,
    client: Client,
    condition: Condition,
    metrics: StartupTaintMetrics,
}

impl fmt::Debug for StartupTaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartupTaint")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl LeaderTask for StartupTaint {
    fn name(&self) -> &'static str {
        "startup taint"
    }

    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            leading.run_until_cancelled(Box::pin(self.follow())).await;
            self.metrics.waiting.set(0);
            self.condition.ok();
        })
    }
}

/// A change that a watch reports.
enum Change {
    Node(Box<watcher::Event<Node>>),
    Pod(Box<watcher::Event<Pod>>),
    Failed(&'static str, watcher::Error),
}

impl StartupTaint {
    /// Creates the task, which starts with [`LeaderTask::run`]. It needs the rights to `get`,
    /// `list`, `watch` and `patch` nodes, and to `list` and `watch` pods in the agents' namespace.
    pub fn new(
        options: StartupTaintOptions,
        client: Client,
        condition: Condition,
        metrics: StartupTaintMetrics,
    ) -> Self {
        condition.ok();
        Self {
            options,
            client,
            condition,
            metrics,
        }
    }

    /// Watches nodes and agents, and removes taints, until it is dropped.
    async fn follow(&self) {
        let config = || watcher::Config::default().timeout(WATCH_SECONDS);
        let nodes = watcher(Api::<Node>::all(self.client.clone()), config());
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.options.namespace);
        let pods = watcher(pods, config().labels(&self.options.selector));
        let nodes = nodes.default_backoff().map(|event| match event {
            Ok(event) => Change::Node(Box::new(event)),
            Err(error) => Change::Failed("nodes", error),
        });
        let pods = pods.default_backoff().map(|event| match event {
            Ok(event) => Change::Pod(Box::new(event)),
            Err(error) => Change::Failed("pods", error),
        });
        let mut changes = pin!(stream::select(nodes, pods));
        let mut known = NodesAndAgents::new(&self.options.key);
        let mut failed = BTreeSet::new();
        let mut retry_at = Instant::now();
        let mut log = FailureLog::default();
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                // A fixed time, which changes of other nodes don't postpone.
                () = sleep_until(retry_at), if !failed.is_empty() => None,
            };
            match change {
                Some(Change::Node(event)) => known.update_nodes(*event),
                Some(Change::Pod(event)) => known.update_agents(*event),
                Some(Change::Failed(resource, error)) => {
                    let reason = format!("cannot watch {resource}: {}", chain(&error));
                    self.report(&reason, &mut log);
                    continue;
                }
                None => failed.clear(),
            }
            // A node whose request failed waits for the next attempt: one change must not cause a
            // request for each node that fails.
            for node in known.ready_nodes() {
                if !failed.contains(&node) && !self.remove_logged(&node, &mut log).await {
                    if failed.is_empty() {
                        retry_at = Instant::now() + RETRY_INTERVAL;
                    }
                    failed.insert(node);
                }
            }
            if failed.is_empty() {
                self.condition.ok();
                log.works_again();
            }
            let waiting = i64::try_from(known.tainted()).unwrap_or(i64::MAX);
            self.metrics.waiting.set(waiting);
        }
    }

    /// Removes the taint of a node. Returns `false` if the request failed.
    async fn remove_logged(&self, node: &str, log: &mut FailureLog) -> bool {
        let removed = timeout(REQUEST_TIMEOUT, self.remove(node)).await;
        let timed_out = || TaintError::TimedOut {
            node: node.to_owned(),
        };
        match removed.unwrap_or_else(|_| Err(timed_out())) {
            Ok(true) => {
                self.metrics.removed.inc();
                tracing::info!(node, taint = self.options.key, "removed the startup taint");
                true
            }
            Ok(false) => true,
            Err(error) => {
                self.report(&error.to_string(), log);
                false
            }
        }
    }

    /// Removes the taint of a node. Returns `false` if the node doesn't have it.
    async fn remove(&self, name: &str) -> Result<bool, TaintError> {
        let failed = |verb| {
            move |source| TaintError::Kube {
                verb,
                node: name.to_owned(),
                source: Box::new(source),
            }
        };
        let nodes = Api::<Node>::all(self.client.clone());
        let Some(node) = nodes.get_opt(name).await.map_err(failed("get"))? else {
            return Ok(false);
        };
        let indices = taints_with(&node, &self.options.key);
        if indices.is_empty() {
            return Ok(false);
        }
        let patch = serde_json::from_value(removal(&indices, &self.options.key));
        let patch = patch.map_err(kube::Error::SerdeError);
        let patch = Patch::Json::<()>(patch.map_err(failed("patch"))?);
        let patched = nodes.patch(name, &PatchParams::default(), &patch).await;
        patched.map(|_| true).map_err(failed("patch"))
    }

    fn report(&self, reason: &str, log: &mut FailureLog) {
        if log.is_first() {
            tracing::warn!(reason, "cannot remove startup taints, retrying");
        } else {
            tracing::debug!(reason, "cannot remove startup taints, retrying");
        }
        self.condition.note(reason.to_owned());
    }
}

/// Shows the first of several failures, and the end of them: a missing right fails for each node,
/// every few seconds.
#[derive(Debug, Default)]
struct FailureLog {
    failures: u64,
}

impl FailureLog {
    /// Counts a failure, and returns whether it is the first one since everything worked.
    fn is_first(&mut self) -> bool {
        self.failures += 1;
        self.failures == 1
    }

    fn works_again(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        if failures > 0 {
            tracing::info!(failures, "removing startup taints works again");
        }
    }
}

/// Returns the JSON patch that removes the taints at these indices. It fails if another client
/// changed the taints meanwhile.
fn removal(indices: &[usize], key: &str) -> Value {
    // From the last one, since each removal moves those after it.
    let operations = indices.iter().rev().flat_map(|index| {
        let path = format!("/spec/taints/{index}");
        [
            json!({"op": "test", "path": format!("{path}/key"), "value": key}),
            json!({"op": "remove", "path": path}),
        ]
    });
    operations.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_failures_is_shown() {
        let mut log = FailureLog::default();
        for _ in 0..2 {
            assert!(log.is_first());
            assert!(!log.is_first() && !log.is_first());
            log.works_again();
        }
        assert!(log.is_first());
    }

    #[test]
    fn the_last_taint_is_removed_first() {
        assert_eq!(
            removal(&[0, 2], "k"),
            json!([
                {"op": "test", "path": "/spec/taints/2/key", "value": "k"},
                {"op": "remove", "path": "/spec/taints/2"},
                {"op": "test", "path": "/spec/taints/0/key", "value": "k"},
                {"op": "remove", "path": "/spec/taints/0"},
            ])
        );
    }
}
