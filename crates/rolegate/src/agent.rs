//! `rolegate agent`: flags → options → run.

mod flags;
mod options;

use std::process::ExitCode;

use anyhow::{Context, bail};
use rolegate_agent::app::{self, Ended};
use rolegate_agent::limits::LimitOptions;
use rolegate_runtime::logging::list;
use rolegate_runtime::version::Version;
use rolegate_runtime::{process, signals};

pub(crate) use flags::{AgentFlags, LONG_ABOUT};

use crate::flags::invalid;
use crate::lifecycle::log_ready;
pub(crate) use options::options;

/// Runs the agent until a signal stops it.
pub(crate) fn run(flags: AgentFlags) -> anyhow::Result<ExitCode> {
    flags.log.start()?;
    tracing::info!(
        version = Version::CURRENT.version,
        revision = Version::CURRENT.revision,
        command = "agent",
        node = flags.node,
        broker = flags.broker,
        redirect = flags
            .redirect
            .as_deref()
            .or(flags.iptables.then_some("auto")),
        host_interface = flags.host_interface,
        host_ip = flags.host_ip.map(tracing::field::display),
        app_port = flags.app_port,
        "starting"
    );
    for note in options::notes(&flags) {
        tracing::warn!("{note}");
    }
    if flags.broker.is_some() && !flags.given.all_rules().is_empty() {
        tracing::warn!(
            flags = list(flags.given.all_rules()),
            "ignoring flags about rules: the broker decides"
        );
    }
    let drain_time = flags.drain_time;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(flags.worker_threads())
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let mut options = options(flags).await?;
        options.metadata.limits =
            within_files(options.metadata.limits, process::raise_open_files());
        let mut shutdown = signals::Shutdown::new().context("cannot install signal handlers")?;
        let mut agent = app::Agent::start(options).await.map_err(|error| {
            if error.is_usage() {
                invalid(error.to_string())
            } else {
                error.into()
            }
        })?;
        let addresses = agent.addresses();
        tracing::info!(pods = %addresses.pods, admin = %addresses.admin, "listening");
        let _ready = log_ready(agent.readiness());
        let ended = tokio::select! {
            signal = shutdown.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            ended = agent.ended() => Some(ended),
        };
        let handed_over = ended == Some(Ended::HandedOver);
        agent.stop(drain_time, handed_over).await;
        match ended {
            Some(Ended::Broken(what)) => {
                bail!("internal error: task \"{what}\" exited unexpectedly; please report this bug")
            }
            Some(Ended::HandedOver) => {
                // Exiting now would restart this agent, which would take the sockets back.
                tracing::info!("the next agent serves this node; waiting for the stop signal");
                shutdown.next().await;
            }
            None => {}
        }
        Ok(ExitCode::SUCCESS)
    })
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
