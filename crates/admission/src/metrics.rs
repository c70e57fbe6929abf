//! What the webhook counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_rules::metrics::{DecisionMetrics, EnforcementPoint};
use rolegate_runtime::histogram::AtomicHistogram;
use rolegate_runtime::shares::Limit;

type Label = [(&'static str, &'static str); 1];

/// How a review ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Allowed.
    Allowed,
    /// Allowed, with warnings of layers in audit mode.
    Warned,
    /// Refused.
    Denied,
    /// Not a review that can be read.
    Malformed,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Allowed, Self::Warned, Self::Denied, Self::Malformed];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Denied => "denied",
            Self::Malformed => "malformed",
        }
    }
}

/// Metrics of the webhook. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct AdmissionMetrics {
    reviews: [AtomicHistogram; 4],
    decisions: DecisionMetrics,
    closed: Family<Label, Counter>,
}

impl AdmissionMetrics {
    /// Registers `admission_review_duration_seconds` by `outcome`, `decisions_total`, and
    /// `admission_connections_closed_total` by `limit`.
    pub fn register(registry: &mut Registry) -> Self {
        let family = Family::<[(&str, &str); 1], AtomicHistogram, _>::new_with_constructor(|| {
            AtomicHistogram::new(AtomicHistogram::LATENCIES)
        });
        let reviews = Ending::ALL.map(|ending| {
            family
                .get_or_create(&[("outcome", ending.as_str())])
                .clone()
        });
        registry.register(
            "admission_review_duration_seconds",
            "Duration of admission reviews, by how they ended",
            family,
        );
        let metrics = Self {
            reviews,
            decisions: DecisionMetrics::register(registry, EnforcementPoint::Admission),
            closed: Family::default(),
        };
        registry.register(
            "admission_connections_closed",
            "Connections closed since a limit of them was reached",
            metrics.closed.clone(),
        );
        metrics
    }

    pub(crate) fn observe(&self, ending: Ending, took: Duration) {
        if let Some(histogram) = self.reviews.get(ending as usize) {
            histogram.observe(took);
        }
        if matches!(ending, Ending::Allowed | Ending::Warned) {
            self.decisions.allowed();
        }
    }

    pub(crate) fn denied(&self, layer: &'static str) {
        self.decisions.denied(layer);
    }

    pub(crate) fn connection_closed(&self, limit: Limit) {
        let limit = match limit {
            Limit::Each => "peer",
            Limit::Known | Limit::Total => "known",
            Limit::Strangers => "strangers",
        };
        self.closed.get_or_create(&[("limit", limit)]).inc();
    }

    pub(crate) fn audited(&self, layer: &'static str) {
        self.decisions.audited(layer);
    }
}
