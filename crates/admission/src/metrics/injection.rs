//! The metrics of the injection.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_review::mutation::Method;
use rolegate_runtime::histogram::AtomicHistogram;

use super::compatible::CompatibleMetrics;

type Label = [(&'static str, &'static str); 1];

/// The reason why a pod was admitted without a role that it may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// The service account is not known after the wait.
    UnknownAccount,
    /// The service account is new and has no role after the wait. Most such pods need none.
    NoRole,
    /// The role cannot be used.
    InvalidRole,
    /// The service account got a role after its pod was admitted.
    LateRole,
    /// Too many pods were waiting.
    TooManyWaiting,
}

impl Missed {
    const COUNTED: [Self; 4] = [
        Self::UnknownAccount,
        Self::InvalidRole,
        Self::LateRole,
        Self::TooManyWaiting,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::UnknownAccount => "unknown_service_account",
            Self::NoRole => "no_role",
            Self::InvalidRole => "invalid_role",
            Self::LateRole => "late_role",
            Self::TooManyWaiting => "too_many_waiting",
        }
    }
}

/// The outcome of a call of `/mutate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MutationEnding {
    /// The pod was changed.
    Changed,
    /// The pod was not changed.
    Unchanged,
    /// The review cannot be read.
    Malformed,
    /// The caches are not loaded.
    NotReady,
}

impl MutationEnding {
    const ALL: [Self; 4] = [
        Self::Changed,
        Self::Unchanged,
        Self::Malformed,
        Self::NotReady,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Malformed => "malformed",
            Self::NotReady => "not_ready",
        }
    }
}

/// The metrics of the injection. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct InjectionMetrics {
    durations: [AtomicHistogram; 4],
    pods: Family<Label, Counter>,
    missed: Family<Label, Counter>,
    waiting: Gauge,
    compatible: Option<CompatibleMetrics>,
}

/// Counts a waiting pod until it is dropped.
#[derive(Debug)]
pub struct Waiting(Gauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl InjectionMetrics {
    /// Registers `injection_duration_seconds` by `outcome`, `injection_pods_total` by `method`,
    /// `injection_missed_total` by `reason`, and `injection_waiting_pods`.
    pub fn register(registry: &mut Registry, compatible: Option<CompatibleMetrics>) -> Self {
        let family = Family::<Label, AtomicHistogram, _>::new_with_constructor(|| {
            AtomicHistogram::new(AtomicHistogram::LATENCIES)
        });
        let durations = MutationEnding::ALL.map(|ending| {
            family
                .get_or_create(&[("outcome", ending.as_str())])
                .clone()
        });
        registry.register(
            "injection_duration_seconds",
            "Duration of calls of the mutating webhook, by outcome",
            family,
        );
        let metrics = Self {
            durations,
            pods: Family::default(),
            missed: Family::default(),
            waiting: Gauge::default(),
            compatible,
        };
        for method in ["sts_web_identity", "container_credentials", "none"] {
            drop(metrics.pods.get_or_create(&[("method", method)]));
        }
        for missed in Missed::COUNTED {
            drop(metrics.missed.get_or_create(&[("reason", missed.as_str())]));
        }
        registry.register(
            "injection_pods",
            "Pods that the mutating webhook admitted, by the method of their credentials",
            metrics.pods.clone(),
        );
        registry.register(
            "injection_missed",
            "Pods admitted without a role that they may need, by reason",
            metrics.missed.clone(),
        );
        registry.register(
            "injection_waiting_pods",
            "Pods that wait for the role of a new service account",
            metrics.waiting.clone(),
        );
        metrics
    }

    /// Returns the metrics with the EKS webhook's names, if they are exported.
    pub(crate) fn compatible(&self) -> Option<&CompatibleMetrics> {
        self.compatible.as_ref()
    }

    pub(crate) fn observe(&self, ending: MutationEnding, took: Duration) {
        if let Some(histogram) = self.durations.get(ending as usize) {
            histogram.observe(took);
        }
    }

    pub(crate) fn injected(&self, method: &Method) {
        let method = method.as_str();
        self.pods.get_or_create(&[("method", method)]).inc();
        if let Some(compatible) = &self.compatible {
            compatible.injected(method);
        }
    }

    pub(crate) fn none(&self) {
        self.pods.get_or_create(&[("method", "none")]).inc();
    }

    pub(crate) fn missed(&self, missed: Missed) {
        self.missed
            .get_or_create(&[("reason", missed.as_str())])
            .inc();
        if let (Missed::UnknownAccount, Some(compatible)) = (missed, &self.compatible) {
            compatible.missing_account();
        }
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting.inc();
        Waiting(self.waiting.clone())
    }
}
