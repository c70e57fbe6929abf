//! Metrics of the rules in force: their source, the generation of the configuration, grants and
//! policies by state, and missing prerequisites. Alerts can compare them to find a process whose
//! rules lag behind.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::in_force::{RuleSource, RulesInForce};
use crate::rules::RuleStore;
use rolegate_core::enforcement::EnforcementPoint;

/// Registers the metric of a process whose broker decides, so it has no rules of its own.
pub fn register_brokered(registry: &mut Registry) {
    let info = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    info.get_or_create(&[("source", "broker")]).set(1);
    registry.register(INFO.0, INFO.1, info);
}

/// The label `layer` of requests that all enforced layers allow.
const ALL_LAYERS: &str = "all";

type DecisionLabels = [(&'static str, &'static str); 4];

/// `decisions_total`: results of the layers. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct DecisionMetrics {
    point: EnforcementPoint,
    decisions: Family<DecisionLabels, Counter>,
    /// Accessed without hashing, since it counts every served request.
    allowed: Counter,
}

impl DecisionMetrics {
    /// Registers the counter of one enforcement point.
    pub fn register(registry: &mut Registry, point: EnforcementPoint) -> Self {
        let decisions = Family::<DecisionLabels, Counter>::default();
        registry.register(
            "decisions",
            "Decisions by enforcement point: requests allowed by all enforced layers, and \
             denials by layer",
            decisions.clone(),
        );
        let labels = Self::labels(point, ALL_LAYERS, "enforce", "allowed");
        let allowed = decisions.get_or_create(&labels).clone();
        Self {
            point,
            decisions,
            allowed,
        }
    }

    fn labels(
        point: EnforcementPoint,
        layer: &'static str,
        mode: &'static str,
        result: &'static str,
    ) -> DecisionLabels {
        [
            ("enforcement_point", point.as_str()),
            ("layer", layer),
            ("mode", mode),
            ("result", result),
        ]
    }

    /// Counts a request that all enforced layers allow.
    pub fn allowed(&self) {
        self.allowed.inc();
    }

    /// Counts a denial by an enforced layer.
    pub fn denied(&self, layer: &'static str) {
        self.count(layer, "enforce");
    }

    /// Counts a denial by a layer in audit mode, which has no effect.
    pub fn audited(&self, layer: &'static str) {
        self.count(layer, "audit");
    }

    fn count(&self, layer: &'static str, mode: &'static str) {
        let labels = Self::labels(self.point, layer, mode, "denied");
        self.decisions.get_or_create(&labels).inc();
    }
}

const INFO: (&str, &str) = (
    "rules_info",
    "The source of the rules in force and the mode of each layer, always 1",
);

/// The rules of a process that has them only at times, such as while it is the leader. Without
/// rules, it exports no metrics about them. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct CurrentRules(Arc<ArcSwapOption<RuleStore>>);

impl CurrentRules {
    /// Sets or clears the rules.
    pub fn set(&self, rules: Option<RuleStore>) {
        self.0.store(rules.map(Arc::new));
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for CurrentRules {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(rules) = self.0.load_full() else {
            return Ok(());
        };
        let snapshot = rules.load();
        let in_force = &snapshot.in_force;
        encode_info(&mut encoder, in_force)?;
        let generation = in_force.generation();
        if let Some(generation) = generation {
            let name = "config_generation";
            let help = "Generation of the RolegateConfig in force";
            encode_gauge(&mut encoder, name, help, generation)?;
        }
        encode_gauge(
            &mut encoder,
            "rules_last_change_timestamp_seconds",
            "Time of the last change of the rules, as Unix time",
            rules.changed_at().as_second(),
        )?;
        encode_gauge(
            &mut encoder,
            "rules_missing",
            "1 if required rules are missing and every request is denied, otherwise 0",
            i64::from(snapshot.missing.is_some()),
        )?;
        let (grants, policies) = (in_force.grants, in_force.policies);
        encode_states(
            &mut encoder,
            "grants",
            "RoleGrants, by state",
            &[("ok", grants.ok), ("invalid", grants.invalid)],
        )?;
        encode_states(
            &mut encoder,
            "policies",
            "ConfigMaps with policies or data, by state",
            &[
                ("ok", policies.ok),
                ("outdated", policies.outdated),
                ("unusable", policies.unusable),
            ],
        )
    }
}

fn encode_info(
    encoder: &mut DescriptorEncoder<'_>,
    in_force: &RulesInForce,
) -> Result<(), fmt::Error> {
    let source = ("source".to_owned(), source(in_force.source));
    // Not the layer's name alone: Prometheus's own label `namespace`, of the scraped pod, would
    // replace that of the layer.
    let modes = in_force
        .modes
        .iter()
        .map(|(layer, mode)| (format!("{}_layer", layer.as_str()), mode.as_str()));
    let labels: Vec<_> = [source].into_iter().chain(modes).collect();
    let mut metric = encoder.encode_descriptor(INFO.0, INFO.1, None, MetricType::Gauge)?;
    ConstGauge::new(1i64).encode(metric.encode_family(&labels)?)
}

/// Returns the label `source`.
fn source(source: RuleSource) -> &'static str {
    match source {
        RuleSource::NotSynced => "unknown",
        RuleSource::Flags => "flags",
        RuleSource::RolegateConfig { .. } => "rolegateconfig",
        RuleSource::Missing => "missing",
        RuleSource::Invalid => "invalid",
    }
}

fn encode_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), fmt::Error> {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

fn encode_states(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    states: &[(&'static str, usize)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (state, count) in states {
        let gauge = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
        gauge.encode(metric.encode_family(&[("state", *state)])?)?;
    }
    Ok(())
}
