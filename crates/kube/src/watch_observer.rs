//! The metrics and the readiness condition of a watch.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rolegate_runtime::readiness::Condition;

use crate::freshness::FreshnessSet;

type ResourceLabel = [(&'static str, &'static str); 1];

/// Metrics of watches. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    pub(crate) errors: Family<ResourceLabel, Counter>,
    pub(crate) restarts: Family<ResourceLabel, Counter>,
}

impl WatchMetrics {
    /// Registers `kube_watch_errors_total`, `kube_watch_restarts_total` and
    /// `kube_watch_age_seconds`, each by `resource`: `pods`, `namespaces` and, if watched,
    /// `rolegrants`, `rolegateconfigs`, `configmaps` and `replicated`. Several watches of one
    /// resource are counted together; their age is that of the stalest.
    pub fn register(registry: &mut Registry, freshness: &FreshnessSet) -> Self {
        let metrics = Self::default();
        for resource in ["pods", "namespaces"] {
            metrics.begin(resource);
        }
        registry.register(
            "kube_watch_errors",
            "Failed attempts to list or watch",
            metrics.errors.clone(),
        );
        registry.register(
            "kube_watch_restarts",
            "Watches restarted with a complete list",
            metrics.restarts.clone(),
        );
        registry.register_collector(Box::new(Ages(freshness.clone())));
        metrics
    }

    /// Creates the series with the value zero.
    pub(crate) fn begin(&self, resource: &'static str) {
        drop(self.errors.get_or_create(&[("resource", resource)]));
        drop(self.restarts.get_or_create(&[("resource", resource)]));
    }
}

#[derive(Debug)]
struct Ages(FreshnessSet);

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "kube_watch_age",
            "Time since the API server last sent data on the watch, including bookmarks",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (resource, age) in self.0.by_resource() {
            let labels = [("resource", resource)];
            ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The destination of a watch's status.
#[derive(Debug, Clone)]
pub struct WatchObserver {
    /// The metrics.
    pub metrics: WatchMetrics,
    /// Fails until the first snapshot; carries a note while the watch fails later.
    pub condition: Condition,
}
