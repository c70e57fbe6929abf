//! The webhook's metrics.

pub mod compatible;
pub mod injection;

use std::ops::Deref;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_review::ViolationSource;
use rolegate_rules::metrics::DecisionMetrics;
use rolegate_runtime::histogram::AtomicHistogram;
use rolegate_runtime::shares::Limit;

type Label = [(&'static str, &'static str); 1];

/// The outcome of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Allowed.
    Allowed,
    /// Allowed, with warnings of layers in audit mode.
    Warned,
    /// Denied.
    Denied,
    /// The review cannot be parsed.
    Malformed,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Allowed, Self::Warned, Self::Denied, Self::Malformed];

    /// Returns the value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Denied => "denied",
            Self::Malformed => "malformed",
        }
    }
}

/// The webhook's metrics. Cloning is cheap; clones share state.
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
            "Duration of admission reviews, by outcome",
            family,
        );
        let metrics = Self {
            reviews,
            decisions: DecisionMetrics::register(registry, EnforcementPoint::Admission),
            closed: Family::default(),
        };
        for limit in [Limit::Each, Limit::Known, Limit::UnknownPeers] {
            drop(metrics.closed(limit));
        }
        registry.register(
            "admission_connections_closed",
            "Connections closed because a limit was reached",
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

    pub(crate) fn denied(&self, by: ViolationSource) {
        self.decisions.denied(by.as_str());
    }

    fn closed(&self, limit: Limit) -> impl Deref<Target = Counter> {
        let limit = match limit {
            Limit::Each => "peer",
            Limit::Known | Limit::Total => "known",
            Limit::UnknownPeers => "unknown_peers",
        };
        self.closed.get_or_create(&[("limit", limit)])
    }

    pub(crate) fn connection_closed(&self, limit: Limit) {
        self.closed(limit).inc();
    }

    pub(crate) fn audited(&self, by: ViolationSource) {
        self.decisions.audited(by.as_str());
    }
}

#[cfg(test)]
mod tests {
    use rolegate_core::layer::LayerId;
    use rolegate_runtime::test_util::Exposition;

    use super::*;

    #[test]
    fn everything_is_counted_under_its_label() {
        let mut registry = Registry::default();
        let metrics = AdmissionMetrics::register(&mut registry);
        for (times, ending) in (1..).zip(Ending::ALL) {
            for _ in 0..times {
                metrics.observe(ending, Duration::from_millis(2));
            }
        }
        metrics.denied(LayerId::Grants.into());
        metrics.audited(LayerId::Rego.into());
        for limit in [Limit::Each, Limit::Known, Limit::Total, Limit::UnknownPeers] {
            metrics.connection_closed(limit);
        }
        let reviews = "admission_review_duration_seconds_count{outcome=";
        let decisions = r#"decisions_total{enforcement_point="admission","#;
        let closed = "admission_connections_closed_total{limit=";
        Exposition::encode(&registry).assert_lines([
            format!(r#"{reviews}"allowed"}} 1"#),
            format!(r#"{reviews}"warned"}} 2"#),
            format!(r#"{reviews}"denied"}} 3"#),
            format!(r#"{reviews}"malformed"}} 4"#),
            // Allowed and warned.
            format!(r#"{decisions}layer="all",mode="enforce",result="allowed"}} 3"#),
            format!(r#"{decisions}layer="grants",mode="enforce",result="denied"}} 1"#),
            format!(r#"{decisions}layer="rego",mode="audit",result="denied"}} 1"#),
            format!(r#"{closed}"peer"}} 1"#),
            format!(r#"{closed}"known"}} 2"#),
            format!(r#"{closed}"unknown_peers"}} 1"#),
        ]);
    }
}
