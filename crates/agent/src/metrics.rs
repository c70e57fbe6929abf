//! Metrics of the agent's doors. What a request touches is atomic and found without hashing.

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_rules::metrics::{DecisionMetrics, EnforcementPoint};
use rolegate_runtime::histogram::AtomicHistogram;

use crate::kube2iam::Kube2iamRequests;
use crate::limits::AgentLimit;

/// What a request asked for; a fixed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// A token of version 2.
    Token,
    /// The name of the pod's role.
    RoleName,
    /// Its credentials.
    Credentials,
    /// `iam/info`.
    Info,
    /// Something of the node's metadata service.
    Forward,
    /// kube2iam's health page.
    Health,
    /// The list of versions, or of what is below one.
    Root,
    /// Nothing that is served.
    Other,
}

/// How it ended; a fixed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Served.
    Ok,
    /// The pod has no role.
    NoRole,
    /// No pod is known by the address.
    UnknownPod,
    /// Another role than the pod's was asked for.
    WrongRole,
    /// Refused by a rule.
    Denied,
    /// STS refuses for good.
    StsRefused,
    /// STS fails for now, or is slow.
    StsUnavailable,
    /// Rules or workloads are not loaded, or too old.
    NotReady,
    /// A malformed request.
    BadRequest,
    /// A missing or wrong token.
    BadToken,
    /// A path that pods may not read.
    ClosedPath,
    /// Over a limit.
    Limited,
    /// The node's metadata service failed.
    Upstream,
}

const HANDLERS: usize = 8;
const OUTCOMES: usize = 13;

impl Handler {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::RoleName => "role_name",
            Self::Credentials => "credentials",
            Self::Info => "info",
            Self::Forward => "forward",
            Self::Health => "health",
            Self::Root => "root",
            Self::Other => "other",
        }
    }
}

impl Outcome {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoRole => "no_role",
            Self::UnknownPod => "unknown_pod",
            Self::WrongRole => "wrong_role",
            Self::Denied => "denied",
            Self::StsRefused => "sts_refused",
            Self::StsUnavailable => "sts_unavailable",
            Self::NotReady => "not_ready",
            Self::BadRequest => "bad_request",
            Self::BadToken => "bad_token",
            Self::ClosedPath => "closed_path",
            Self::Limited => "limited",
            Self::Upstream => "upstream",
        }
    }
}

impl EncodeLabelValue for Handler {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        self.as_str().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    handler: Handler,
    outcome: Outcome,
}

type Requests = Family<RequestLabels, AtomicHistogram, fn() -> AtomicHistogram>;
type SmallGauge = Gauge<i64, AtomicI64>;

/// Metrics of the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AgentMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Requests,
    /// The family's histograms as they are first used, found by position.
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

    /// Registers the metrics, and some under kube2iam's names in `common`, which has no prefix.
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
            "Duration of pods' requests, by what was asked for and how it ended",
            inner.requests.clone(),
        );
        registry.register(
            "limit_reached",
            "Connections that were closed and requests that were refused, by the limit that was reached",
            limits,
        );
        registry.register("pods", "Pods known, of this node", inner.pods.clone());
        registry.register(
            "conflicting_pod_ips",
            "Addresses that several live pods have, none of which gets credentials",
            inner.disputed.clone(),
        );
        Self(Arc::new(inner))
    }

    /// Counts one request.
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

    /// Counts a request that a layer refused.
    pub(crate) fn denied(&self, layer: &'static str) {
        self.0.decisions.denied(layer);
    }

    /// Counts a request that a layer in audit mode would have refused.
    pub(crate) fn audited(&self, layer: &'static str) {
        self.0.decisions.audited(layer);
    }

    /// Counts a request for credentials that was allowed.
    pub(crate) fn allowed(&self) {
        self.0.decisions.allowed();
    }

    /// Counts it under kube2iam's names, where they are wanted.
    pub(crate) fn kube2iam(&self) -> Option<&Kube2iamRequests> {
        self.0.kube2iam.as_ref()
    }

    /// Counts what was refused or evicted for a limit.
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
