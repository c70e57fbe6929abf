//! The metrics of one process, without globals: built at start, then only read.

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::process::ProcessCollector;

/// What [`Metrics::encode`] returns: OpenMetrics text, which Prometheus reads too.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    ours: Registry,
    common: Registry,
}

impl Metrics {
    /// Has `rolegate_build_info` with this version and the usual `process_*` metrics.
    pub fn new(version: &'static str) -> Self {
        let mut common = Registry::default();
        common.register_collector(Box::new(ProcessCollector));
        let mut ours = Registry::with_prefix("rolegate");
        let build = Family::<[(&str, &str); 1], Gauge>::default();
        build.get_or_create(&[("version", version)]).set(1);
        ours.register("build_info", "The version that runs, always 1", build);
        Self { ours, common }
    }

    /// Where metrics named `rolegate_*` are registered (without the prefix).
    pub fn ours(&mut self) -> &mut Registry {
        &mut self.ours
    }

    /// Where metrics under other people's names are registered.
    pub fn common(&mut self) -> &mut Registry {
        &mut self.common
    }

    /// [`Self::ours`] and [`Self::common`], for what registers in both.
    pub fn both(&mut self) -> (&mut Registry, &mut Registry) {
        (&mut self.ours, &mut self.common)
    }

    /// Everything, as [`CONTENT_TYPE`].
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.ours)?;
        encode_registry(&mut text, &self.common)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::ConstGauge;

    use super::*;

    #[test]
    fn everything_is_in_one_text() {
        let mut metrics = Metrics::new("1.2.3");
        let denied = Counter::<u64>::default();
        metrics.ours().register("denied", "Refused", denied.clone());
        metrics
            .common()
            .register("kube2iam_info", "Theirs", ConstGauge::new(1i64));
        denied.inc();
        let text = metrics.encode().unwrap();
        for line in [
            "rolegate_build_info{version=\"1.2.3\"} 1",
            "rolegate_denied_total 1",
            "kube2iam_info 1",
            "process_threads ",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
