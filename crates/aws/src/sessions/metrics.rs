//! Metrics of sessions and of the calls that bring them.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::session::FailureKind;
use rolegate_runtime::histogram::AtomicHistogram;

type Outcome = [(&'static str, &'static str); 1];
type Histograms = Family<Outcome, AtomicHistogram, fn() -> AtomicHistogram>;

/// Metrics of one session driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionMetrics {
    calls: Histograms,
    known: Gauge<i64, AtomicI64>,
    queued: Gauge<i64, AtomicI64>,
    in_flight: Gauge<i64, AtomicI64>,
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

    pub(super) fn call(&self, failure: Option<FailureKind>, took: Duration) {
        let outcome = failure.map_or("success", FailureKind::reason);
        self.calls
            .get_or_create(&[("outcome", outcome)])
            .observe(took);
    }

    pub(super) fn set_counts(&self, (known, queued, in_flight): (usize, usize, usize)) {
        let as_gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.known.set(as_gauge(known));
        self.queued.set(as_gauge(queued));
        self.in_flight.set(as_gauge(in_flight));
    }
}
