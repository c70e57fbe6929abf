//! Whether the rules count, and all policies, for alarms: who waits for a refusal to hear that the
//! configuration is gone, or a policy broken, hears it from users.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::rules::Rules;

/// Registers `rules_missing`: 1 while something is missing, the cluster's configuration or a
/// policy that is required, for which everything is refused; and `policies` by `state`: `ok`,
/// `outdated` (broken, the version before is asked) and `unusable` (it never could be asked).
pub fn register(registry: &mut Registry, rules: Rules) {
    registry.register_collector(Box::new(Missing(rules)));
}

#[derive(Debug)]
struct Missing(Rules);

impl Collector for Missing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let missing = ConstGauge::new(i64::from(self.0.load().missing.is_some()));
        let metric = encoder.encode_descriptor(
            "rules_missing",
            "Whether rules are missing without which everything is refused, 1 or 0",
            None,
            missing.metric_type(),
        )?;
        missing.encode(metric)?;
        let counts = self.0.load().policy_counts;
        let mut metric = encoder.encode_descriptor(
            "policies",
            "ConfigMaps of policies and data by how they fare",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in [
            ("ok", counts.ok),
            ("outdated", counts.outdated),
            ("unusable", counts.unusable),
        ] {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(metric.encode_family(&[("state", state)])?)?;
        }
        Ok(())
    }
}
