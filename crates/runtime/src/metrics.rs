//! The metrics of one process, without globals: built at start, then only read.

mod format;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::process::ProcessCollector;
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
    /// Has `rolegate_build_info` with this version and the usual `process_*` metrics.
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
            "The version that runs and its commit, always 1",
            build,
        );
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

    /// Everything, as OpenMetrics.
    ///
    /// # Errors
    /// When a collector fails.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.encode_as(Format::OpenMetrics)
    }

    /// Everything, in a format.
    ///
    /// # Errors
    /// When a collector fails.
    pub fn encode_as(&self, format: Format) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.ours)?;
        encode_registry(&mut text, &self.common)?;
        encode_eof(&mut text)?;
        Ok(format.render(&text))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::ConstGauge;

    use super::*;

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
