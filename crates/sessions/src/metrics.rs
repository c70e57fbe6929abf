//! Metrics of sessions and of their calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use rolegate_core::engine::Counts;
use rolegate_core::session::{Failure, FailureKind, SessionKey};
use rolegate_runtime::histogram::AtomicHistogram;

use crate::kube2iam::Kube2iamCalls;

type Line = [(&'static str, &'static str); 1];
type Outcome = [(&'static str, &'static str); 1];
type Histograms = Family<Outcome, AtomicHistogram, fn() -> AtomicHistogram>;

/// Metrics of one session driver. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct SessionMetrics {
    calls: Histograms,
    known: Gauge<i64, AtomicI64>,
    queued: Family<Line, Gauge<i64, AtomicI64>>,
    oldest_wait: Gauge<f64, AtomicU64>,
    rate: RateLimit,
    in_flight: Gauge<i64, AtomicI64>,
    kube2iam: Option<Kube2iamCalls>,
}

/// The current limit of calls per second. Omitted if there is no limit.
#[derive(Debug, Clone, Default)]
struct RateLimit(Arc<Mutex<Option<f64>>>);

impl RateLimit {
    fn set(&self, limit: Option<f64>) {
        *self.0.lock() = limit;
    }
}

impl Collector for RateLimit {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(limit) = *self.0.lock() else {
            return Ok(());
        };
        let help = "Current limit of AssumeRole calls per second";
        let metric = encoder.encode_descriptor("sts_rate_limit", help, None, MetricType::Gauge)?;
        ConstGauge::new(limit).encode(metric)
    }
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
            rate: RateLimit::default(),
            in_flight: Gauge::default(),
            kube2iam: None,
        };
        // At 0, since the increase of a series that appears with its first call is not seen.
        for failure in FailureKind::ALL.map(Some).into_iter().chain([None]) {
            let labels = [("outcome", outcome(failure))];
            drop(metrics.calls.get_or_create(&labels));
        }
        registry.register(
            "sts_request_duration_seconds",
            "Duration of AssumeRole calls, by outcome",
            metrics.calls.clone(),
        );
        registry.register("sessions", "Sessions held", metrics.known.clone());
        registry.register(
            "sts_queue_length",
            "Sessions waiting for an AssumeRole call, by reason",
            metrics.queued.clone(),
        );
        registry.register(
            "sts_queue_oldest_wait_seconds",
            "Longest time that a session has waited for an AssumeRole call",
            metrics.oldest_wait.clone(),
        );
        registry.register_collector(Box::new(metrics.rate.clone()));
        registry.register(
            "sts_in_flight",
            "AssumeRole calls in flight",
            metrics.in_flight.clone(),
        );
        metrics
    }

    /// Also exports the duration of calls under kube2iam's name. `registry` has no prefix.
    #[must_use]
    pub fn with_kube2iam_names(mut self, registry: &mut Registry) -> Self {
        self.kube2iam = Some(Kube2iamCalls::register(registry));
        self
    }

    pub(crate) fn call(&self, key: &SessionKey, failure: Option<&Failure>, took: Duration) {
        let outcome = outcome(failure.map(|failure| failure.kind));
        self.calls
            .get_or_create(&[("outcome", outcome)])
            .observe(took);
        if let Some(kube2iam) = &self.kube2iam {
            kube2iam.call(key, failure, took);
        }
    }

    pub(crate) fn set_counts(&self, counts: &Counts) {
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
        self.rate.set(counts.rate);
        self.in_flight.set(as_gauge(counts.in_flight));
    }
}

/// Returns the label `outcome` of a call.
fn outcome(failure: Option<FailureKind>) -> &'static str {
    failure.map_or("success", FailureKind::reason)
}
