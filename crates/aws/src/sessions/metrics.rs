//! Metrics of sessions and of the calls that bring them.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::session::{Failure, SessionKey};
use rolegate_runtime::histogram::AtomicHistogram;

use super::kube2iam::Kube2iamCalls;

type Outcome = [(&'static str, &'static str); 1];
type Histograms = Family<Outcome, AtomicHistogram, fn() -> AtomicHistogram>;

/// Metrics of one session driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionMetrics {
    calls: Histograms,
    known: Gauge<i64, AtomicI64>,
    queued: Gauge<i64, AtomicI64>,
    in_flight: Gauge<i64, AtomicI64>,
    kube2iam: Option<Kube2iamCalls>,
}

impl SessionMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::new_with_constructor(|| {
                AtomicHistogram::new(AtomicHistogram::LATENCIES)
            }),
            known: Gauge::default(),
            queued: Gauge::default(),
            in_flight: Gauge::default(),
            kube2iam: None,
        };
        registry.register(
            "sts_request_duration_seconds",
            "Time that calls of AssumeRole took, by outcome",
            metrics.calls.clone(),
        );
        registry.register("sessions", "Sessions kept", metrics.known.clone());
        registry.register(
            "sts_queue_length",
            "Sessions in line for a call",
            metrics.queued.clone(),
        );
        registry.register(
            "sts_in_flight",
            "Calls of AssumeRole being made",
            metrics.in_flight.clone(),
        );
        metrics
    }

    /// Shows the time of calls under kube2iam's name too. `registry` has no prefix.
    #[must_use]
    pub fn with_kube2iam_names(mut self, registry: &mut Registry) -> Self {
        self.kube2iam = Some(Kube2iamCalls::register(registry));
        self
    }

    pub(super) fn call(&self, key: &SessionKey, failure: Option<&Failure>, took: Duration) {
        let outcome = failure.map_or("success", |failure| failure.kind.reason());
        self.calls
            .get_or_create(&[("outcome", outcome)])
            .observe(took);
        if let Some(kube2iam) = &self.kube2iam {
            kube2iam.call(key, failure, took);
        }
    }

    pub(super) fn set_counts(&self, (known, queued, in_flight): (usize, usize, usize)) {
        let as_gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.known.set(as_gauge(known));
        self.queued.set(as_gauge(queued));
        self.in_flight.set(as_gauge(in_flight));
    }
}
