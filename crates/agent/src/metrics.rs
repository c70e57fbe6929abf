//! Metrics of the agent. Those that a request updates are atomic and found without hashing.

mod kube2iam;
mod labels;

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::decision::DenialSource;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_rules::metrics::DecisionMetrics;
use rolegate_runtime::histogram::AtomicHistogram;

use kube2iam::Kube2iamRequests;
pub use labels::{AgentLimit, Handler, Outcome};

const HANDLERS: usize = 9;
const OUTCOMES: usize = 13;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    handler: Handler,
    outcome: Outcome,
}

type Requests = Family<RequestLabels, AtomicHistogram, fn() -> AtomicHistogram>;
type SmallGauge = Gauge<i64, AtomicI64>;

/// Metrics of the agent. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct AgentMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Requests,
    /// The family's histograms by index, created on first use.
    slots: [[OnceLock<AtomicHistogram>; OUTCOMES]; HANDLERS],
    decisions: DecisionMetrics,
    limits: [Counter; AgentLimit::ALL.len()],
    pods: SmallGauge,
    disputed: SmallGauge,
    kube2iam: Option<Kube2iamRequests>,
}

impl AgentMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        Self::new(registry, None)
    }

    /// Registers the metrics, including those with kube2iam's names in `common`, which has no
    /// prefix.
    pub fn register_with_kube2iam_names(registry: &mut Registry, common: &mut Registry) -> Self {
        Self::new(registry, Some(Kube2iamRequests::register(common)))
    }

    fn new(registry: &mut Registry, kube2iam: Option<Kube2iamRequests>) -> Self {
        let limits = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let inner = Inner {
            requests: Family::new_with_constructor(|| {
                AtomicHistogram::new(AtomicHistogram::LATENCIES)
            }),
            slots: Default::default(),
            decisions: DecisionMetrics::register(registry, EnforcementPoint::Agent),
            limits: AgentLimit::ALL.map(|limit| {
                let labels = [("limit", limit.as_str())];
                limits.get_or_create(&labels).clone()
            }),
            pods: SmallGauge::default(),
            disputed: SmallGauge::default(),
            kube2iam,
        };
        registry.register(
            "request_duration_seconds",
            "Duration of pods' requests, by handler and outcome",
            inner.requests.clone(),
        );
        registry.register(
            "limit_reached",
            "Closed connections and refused requests, by the limit that was reached",
            limits,
        );
        registry.register("pods", "Known pods of this node", inner.pods.clone());
        registry.register(
            "conflicting_pod_ips",
            "Addresses that several live pods claim, none of which gets credentials",
            inner.disputed.clone(),
        );
        Self(Arc::new(inner))
    }

    /// Counts a request.
    pub fn request(&self, handler: Handler, outcome: Outcome, took: Duration) {
        let slot = self
            .0
            .slots
            .get(handler as usize)
            .and_then(|outcomes| outcomes.get(outcome as usize));
        if let Some(slot) = slot {
            slot.get_or_init(|| {
                let labels = RequestLabels { handler, outcome };
                self.0.requests.get_or_create(&labels).clone()
            })
            .observe(took);
        }
    }

    /// Counts a denied request.
    pub(crate) fn denied(&self, by: DenialSource) {
        self.0.decisions.denied(by.as_str());
    }

    /// Counts a request that a layer in audit mode would have denied.
    pub(crate) fn audited(&self, by: DenialSource) {
        self.0.decisions.audited(by.as_str());
    }

    /// Counts a request for credentials that was allowed.
    pub(crate) fn allowed(&self) {
        self.0.decisions.allowed();
    }

    /// Returns the metrics with kube2iam's names, if enabled.
    pub(crate) fn kube2iam(&self) -> Option<&Kube2iamRequests> {
        self.0.kube2iam.as_ref()
    }

    /// Counts a refusal or eviction because of a limit.
    pub(crate) fn limit_reached(&self, limit: AgentLimit) {
        if let Some(counter) = self.0.limits.get(limit as usize) {
            counter.inc();
        }
    }

    pub(crate) fn set_pods(&self, pods: usize, disputed: usize) {
        self.0.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.0
            .disputed
            .set(i64::try_from(disputed).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use rolegate_core::layer::LayerId;
    use rolegate_runtime::test_util::Exposition;

    use super::*;

    #[test]
    fn everything_is_counted_under_its_label() {
        let mut registry = Registry::default();
        let metrics = AgentMetrics::register(&mut registry);
        let took = Duration::from_millis(2);
        metrics.request(Handler::Token, Outcome::BadToken, took);
        // The last of each.
        metrics.request(Handler::Other, Outcome::Upstream, took);
        metrics.request(Handler::Other, Outcome::Upstream, took);
        metrics.limit_reached(AgentLimit::PodWaiters);
        metrics.set_pods(3, 1);
        metrics.denied(LayerId::Grants.into());
        metrics.audited(LayerId::Rego.into());
        metrics.allowed();
        let decisions = r#"decisions_total{enforcement_point="agent","#;
        Exposition::encode(&registry).assert_lines([
            r#"request_duration_seconds_count{handler="token",outcome="bad_token"} 1"#,
            r#"request_duration_seconds_count{handler="other",outcome="upstream"} 2"#,
            r#"limit_reached_total{limit="pod_waiters"} 1"#,
            r#"limit_reached_total{limit="connections"} 0"#,
            "pods 3",
            "conflicting_pod_ips 1",
            &format!(r#"{decisions}layer="grants",mode="enforce",result="denied"}} 1"#),
            &format!(r#"{decisions}layer="rego",mode="audit",result="denied"}} 1"#),
            &format!(r#"{decisions}layer="all",mode="enforce",result="allowed"}} 1"#),
        ]);
    }
}
