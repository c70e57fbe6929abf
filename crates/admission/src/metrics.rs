//! What the webhook counts.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_rules::metrics::{DecisionMetrics, EnforcementPoint};
use rolegate_runtime::histogram::AtomicHistogram;

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
}

impl AdmissionMetrics {
    /// Registers `admission_review_duration_seconds` by `outcome`, and `decisions_total`.
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
        Self {
            reviews,
            decisions: DecisionMetrics::register(registry, EnforcementPoint::Admission),
        }
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

    pub(crate) fn audited(&self, layer: &'static str) {
        self.decisions.audited(layer);
    }
}
