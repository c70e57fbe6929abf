//! The metrics of EKS's pod identity webhook under their names, for its dashboards and alerts.
//!
//! They are gauges here, because the client library appends `_total` to the names of counters.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of latencies, in microseconds: 125,000·2ⁿ.
const LATENCIES: [f64; 7] = [125e3, 250e3, 500e3, 1000e3, 2000e3, 4000e3, 8000e3];

type Request = [(&'static str, &'static str); 3];
type Path = [(&'static str, &'static str); 2];
type Latencies = Family<Path, Histogram, fn() -> Histogram>;

/// The metrics. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct CompatibleMetrics {
    requests: Family<Request, Gauge>,
    latencies: Latencies,
    pods: Family<[(&'static str, &'static str); 1], Gauge>,
    missing: Gauge,
    used: Gauge,
}

impl CompatibleMetrics {
    /// Registers the metrics without rolegate's prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCIES);
        let metrics = Self {
            requests: Family::default(),
            latencies: Family::new_with_constructor(histogram),
            pods: Family::default(),
            missing: Gauge::default(),
            used: Gauge::default(),
        };
        registry.register(
            "http_request_count",
            "HTTP requests by verb, path and code",
            metrics.requests.clone(),
        );
        for name in [
            "http_request_latencies",
            "http_request_duration_microseconds",
        ] {
            registry.register(
                name,
                "Latency of HTTP requests in microseconds, by verb and path",
                metrics.latencies.clone(),
            );
        }
        registry.register(
            "pod_identity_webhook_pod_count",
            "Pods that got credentials, by method",
            metrics.pods.clone(),
        );
        registry.register(
            "pod_identity_webhook_missing_sa_count",
            "Pods whose service account is not known",
            metrics.missing.clone(),
        );
        registry.register(
            "pod_identity_webhook_used",
            "1 if a pod got credentials",
            metrics.used.clone(),
        );
        metrics
    }

    /// Counts a request. Unknown paths are one.
    pub(crate) fn request(&self, path: &'static str, code: u16, took: Duration) {
        let verb = ("verb", "POST");
        let code = match code {
            200 => "200",
            415 => "415",
            400..500 => "4xx",
            _ => "5xx",
        };
        self.requests
            .get_or_create(&[verb, ("path", path), ("code", code)])
            .inc();
        self.latencies
            .get_or_create(&[verb, ("path", path)])
            .observe(took.as_secs_f64() * 1e6);
    }

    pub(super) fn injected(&self, method: &'static str) {
        self.pods.get_or_create(&[("method", method)]).inc();
        self.used.set(1);
    }

    pub(super) fn missing_account(&self) {
        self.missing.inc();
    }
}
