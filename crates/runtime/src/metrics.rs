//! The metrics of one process, without globals: registered at startup, then only read.

mod format;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::process::ProcessCollector;
use crate::readiness::Readiness;
use crate::version::Version;

pub use format::Format;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    ours: Registry,
    common: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates the registries with `rolegate_build_info` and the standard `process_*` metrics.
    pub fn new() -> Self {
        let version = Version::CURRENT;
        let mut common = Registry::default();
        common.register_collector(Box::new(ProcessCollector));
        let mut ours = Registry::with_prefix("rolegate");
        let build = Family::<[(&str, &str); 2], Gauge>::default();
        let labels = [("version", version.version), ("revision", version.revision)];
        build.get_or_create(&labels).set(1);
        ours.register(
            "build_info",
            "Version and commit of this process, always 1",
            build,
        );
        Self { ours, common }
    }

    /// Adds `rolegate_ready`, the result of `/readyz`.
    #[must_use]
    pub fn with_readiness(mut self, readiness: &Readiness) -> Self {
        self.ours
            .register_collector(Box::new(Ready(readiness.clone())));
        self
    }

    /// Returns the registry of metrics named `rolegate_*` (registered without the prefix).
    pub fn ours(&mut self) -> &mut Registry {
        &mut self.ours
    }

    /// Returns the registry of metrics without our prefix.
    pub fn common(&mut self) -> &mut Registry {
        &mut self.common
    }

    /// Returns [`Self::ours`] and [`Self::common`], for components that register in both.
    pub fn both(&mut self) -> (&mut Registry, &mut Registry) {
        (&mut self.ours, &mut self.common)
    }

    /// Encodes all metrics as OpenMetrics.
    ///
    /// # Errors
    /// Returns an error if a collector fails.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.encode_as(Format::OpenMetrics)
    }

    /// Encodes all metrics in this format.
    ///
    /// # Errors
    /// Returns an error if a collector fails.
    pub fn encode_as(&self, format: Format) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.ours)?;
        encode_registry(&mut text, &self.common)?;
        encode_eof(&mut text)?;
        Ok(format.render(&text))
    }
}

#[derive(Debug)]
struct Ready(Readiness);

impl Collector for Ready {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "1 if the process is ready, 0 otherwise";
        let metric = encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.0.is_ready())).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::ConstGauge;

    use super::*;

    #[test]
    fn readiness_is_a_metric() {
        let readiness = Readiness::new();
        let metrics = Metrics::new().with_readiness(&readiness);
        let has = |line: &str| metrics.encode().unwrap().lines().any(|found| found == line);
        let block = readiness.block("pods not loaded");
        assert!(has("rolegate_ready 0"));
        drop(block);
        assert!(has("rolegate_ready 1"));
        readiness.condition("redirect").fail("rules are gone");
        assert!(has("rolegate_ready 0"));
    }

    #[test]
    fn everything_is_in_one_text() {
        let mut metrics = Metrics::new();
        let denied = Counter::<u64>::default();
        metrics.ours().register("denied", "Refused", denied.clone());
        metrics
            .common()
            .register("kube2iam_info", "Theirs", ConstGauge::new(1i64));
        denied.inc();
        let text = metrics.encode().unwrap();
        for line in [
            "rolegate_build_info{version=\"0.",
            "rolegate_denied_total 1",
            "kube2iam_info 1",
            "process_open_fds ",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
