//! `rolegate agent`: flags → options → run.

mod flags;
mod options;

use std::process::ExitCode;

use anyhow::{Context, bail};
use rolegate_agent::app::{self, Ended};
use rolegate_runtime::signals;

pub(crate) use flags::{AgentFlags, LONG_ABOUT};

use crate::flags::invalid;
pub(crate) use options::options;

/// Runs the agent until it is told to stop.
pub(crate) fn run(flags: AgentFlags) -> anyhow::Result<ExitCode> {
    flags.log.start()?;
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
        let options = options(flags).await?;
        let mut shutdown = signals::Shutdown::new().context("signals cannot be listened to")?;
        let mut agent = app::Agent::start(options).await.map_err(|error| {
            if error.is_usage() {
                invalid(error.to_string())
            } else {
                error.into()
            }
        })?;
        let addresses = agent.addresses();
        tracing::info!(pods = %addresses.pods, admin = %addresses.admin, "listening");
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
            Some(Ended::Broken(what)) => bail!("{what} ended, which is a fault of rolegate"),
            Some(Ended::HandedOver) => {
                // Ending now would have us started again, and take the sockets back.
                tracing::info!("the next agent serves this node; waiting to be stopped");
                shutdown.next().await;
            }
            None => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
