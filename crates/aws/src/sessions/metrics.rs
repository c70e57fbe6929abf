//! Metrics of sessions and of the calls that bring them.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::engine::Counts;
use rolegate_core::session::{Failure, SessionKey};
use rolegate_runtime::histogram::AtomicHistogram;

use super::kube2iam::Kube2iamCalls;

type Line = [(&'static str, &'static str); 1];
type Outcome = [(&'static str, &'static str); 1];
type Histograms = Family<Outcome, AtomicHistogram, fn() -> AtomicHistogram>;

/// Metrics of one session driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionMetrics {
    calls: Histograms,
    known: Gauge<i64, AtomicI64>,
    queued: Family<Line, Gauge<i64, AtomicI64>>,
    oldest_wait: Gauge<f64, AtomicU64>,
    rate: Gauge<f64, AtomicU64>,
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
            queued: Family::default(),
            oldest_wait: Gauge::default(),
            rate: Gauge::default(),
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
            "Sessions in line for a call, by why they wait",
            metrics.queued.clone(),
        );
        registry.register(
            "sts_queue_oldest_wait_seconds",
            "How long the session that is longest in line for a call has been there",
            metrics.oldest_wait.clone(),
        );
        registry.register(
            "sts_calls_per_second_limit",
            "Calls of AssumeRole that may be made in a second now, 0 for no limit",
            metrics.rate.clone(),
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

    pub(super) fn set_counts(&self, counts: &Counts) {
        let as_gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.known.set(as_gauge(counts.sessions));
        for (line, length) in [
            ("urgent", counts.urgent),
            ("prefetch", counts.prefetch),
            ("allowance", counts.held),
        ] {
            let gauge = self.queued.get_or_create(&[("line", line)]);
            gauge.set(as_gauge(length));
        }
        self.oldest_wait.set(counts.oldest_wait.as_secs_f64());
        self.rate.set(counts.rate.unwrap_or_default());
        self.in_flight.set(as_gauge(counts.in_flight));
    }
}
