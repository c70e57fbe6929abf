//! `rolegate agent`: flags → options → run.

mod flags;
mod options;

use std::process::ExitCode;

use anyhow::Context;
use rolegate_agent::app;
use rolegate_runtime::{logging, signals};

pub(crate) use flags::AgentFlags;

/// Runs the agent until it is told to stop.
pub(crate) fn run(flags: AgentFlags) -> anyhow::Result<ExitCode> {
    let (format, level) = options::logging(&flags)?;
    logging::init(format, &level).context("the log cannot be set up")?;
    for note in options::notes(&flags) {
        tracing::warn!("{note}");
    }
    let drain_time = flags.drain_time;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(flags.worker_threads())
        .enable_all()
        .build()
        .context("no threads can be started")?;
    runtime.block_on(async {
        let options = options::options(flags).await?;
        let mut shutdown = signals::Shutdown::new().context("signals cannot be listened to")?;
        let agent = app::Agent::start(options).await?;
        let addresses = agent.addresses();
        tracing::info!(pods = %addresses.pods, admin = %addresses.admin, "listening");
        tokio::select! {
            signal = shutdown.next() => tracing::info!(signal, "stopping"),
            () = agent.ended() => {}
        }
        agent.stop(drain_time).await;
        Ok(ExitCode::SUCCESS)
    })
}
