//! `rolegate agent`: flags → options.

mod flags;
mod options;

use std::time::Duration;

use rolegate_agent::app::{Agent, AgentOptions, AgentService};
use rolegate_agent::limits::LimitOptions;
use rolegate_runtime::logging::list;
use rolegate_runtime::process;

pub(crate) use flags::{AgentFlags, LONG_ABOUT};

use crate::flags::log::LogFlags;
use crate::run::{Process, log_starting};
pub(crate) use options::options;

impl Process for AgentFlags {
    type Service = AgentService;

    fn log(&self) -> &LogFlags {
        &self.log
    }

    fn drain_time(&self) -> Duration {
        self.drain_time
    }

    fn worker_threads(&self) -> Option<usize> {
        Some(self.serving_threads())
    }

    fn log_starting(&self) {
        log_starting!(
            "agent",
            node = self.node,
            broker = self.broker,
            redirect = self.redirect.as_deref().or(self.iptables.then_some("auto")),
            host_interface = self.host_interface,
            host_ip = self.host_ip.map(tracing::field::display),
            app_port = self.app_port
        );
        for note in options::notes(self) {
            tracing::warn!("{note}");
        }
        if self.broker.is_some() && !self.given.all_rules().is_empty() {
            tracing::warn!(
                flags = list(self.given.all_rules()),
                "ignoring flags about rules: the broker decides"
            );
        }
    }

    async fn options(self) -> anyhow::Result<AgentOptions> {
        let mut options = options(self).await?;
        let files = process::raise_open_files();
        options.metadata.limits = within_files(options.metadata.limits, files);
        if let Some(endpoint) = &mut options.container_credentials {
            // Half for each endpoint.
            endpoint.limits = within_files(endpoint.limits, files / 2);
            options.metadata.limits = within_files(options.metadata.limits, files / 2);
        }
        Ok(options)
    }

    fn log_listening(running: &Agent) {
        let addresses = running.addresses();
        let endpoint: Vec<_> = addresses.container_credentials.iter().flatten().collect();
        tracing::info!(
            pods = %addresses.pods,
            admin = %addresses.admin,
            container_credentials = (!endpoint.is_empty()).then(|| tracing::field::debug(endpoint)),
            "listening"
        );
    }
}

/// Number of files that an agent opens in addition to connections of pods.
const OTHER_FILES: u64 = 256;

/// Lowers the connection limit to the limit of open files. A connection that cannot be accepted
/// would block all others.
fn within_files(limits: LimitOptions, files: u64) -> LimitOptions {
    let room = files.saturating_sub(OTHER_FILES);
    // Evicted connections that are still finishing add an eighth.
    let most = usize::try_from(room / 9 * 8).unwrap_or(usize::MAX).max(1);
    if limits.connections <= most {
        return limits;
    }
    tracing::warn!(
        files,
        "--max-connections={} is lowered to {most}: the limit of open files is too low",
        limits.connections
    );
    LimitOptions {
        connections: most,
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_connections_than_open_files() {
        let within = |files| within_files(LimitOptions::default(), files).connections;
        assert_eq!(within(u64::MAX), 2048);
        assert_eq!(within(20_000), 2048);
        assert_eq!(within(1024), 680);
        assert_eq!(within(10), 1);
    }
}
