//! Runs a process: its log, its threads, signals, and its end.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::signals::Shutdown;
use rolegate_runtime::supervisor::{Ended, Running, Service, StartError};
use tokio_util::task::AbortOnDropHandle;

use crate::flags::invalid;
use crate::flags::log::LogFlags;

/// Runs the work of a command that is not a process, on this thread.
///
/// # Errors
/// Returns the error of the work, or an error if the runtime cannot be created.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(work)
}

/// The flags of a process.
pub(crate) trait Process: Sized {
    /// The process that they start.
    type Service: Service;

    /// Returns the flags about the log.
    fn log(&self) -> &LogFlags;

    /// Returns the maximum time to finish open work at exit.
    fn drain_time(&self) -> Duration;

    /// Returns the number of worker threads, or `None` for one on each CPU.
    fn worker_threads(&self) -> Option<usize> {
        None
    }

    /// Logs the first line, and notes about the flags.
    fn log_starting(&self);

    /// Validates all flags, individually and together.
    ///
    /// # Errors
    /// Returns a usage error for invalid flags.
    fn options(self) -> impl Future<Output = anyhow::Result<<Self::Service as Service>::Options>>;

    /// Logs the bound addresses.
    fn log_listening(running: &Running<Self::Service>);
}

/// Logs the first line of a process, with fields of its own.
macro_rules! log_starting {
    ($command:literal, $($fields:tt)*) => {
        tracing::info!(
            version = rolegate_runtime::version::Version::CURRENT.version,
            revision = rolegate_runtime::version::Version::CURRENT.revision,
            command = $command,
            $($fields)*,
            "starting"
        )
    };
}
pub(crate) use log_starting;

/// Runs a process until a signal stops it.
pub(crate) fn run<P: Process>(flags: P) -> anyhow::Result<ExitCode> {
    flags.log().start()?;
    flags.log_starting();
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = flags.worker_threads() {
        threads.worker_threads(workers);
    }
    let runtime = threads
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(serve(flags))
}

async fn serve<P: Process>(flags: P) -> anyhow::Result<ExitCode> {
    let drain_time = flags.drain_time();
    let options = flags.options().await?;
    let mut shutdown = Shutdown::new().context("cannot install signal handlers")?;
    let mut running = Running::<P::Service>::start(options)
        .await
        .map_err(start_error)?;
    P::log_listening(&running);
    let _ready = log_ready(running.readiness());
    let ended = tokio::select! {
        signal = shutdown.next() => {
            tracing::info!(signal, "stopping");
            None
        }
        ended = running.ended() => Some(ended),
    };
    running.stop(drain_time).await;
    match ended {
        Some(Ended::TaskExited(task)) => {
            bail!("internal error: task \"{task}\" exited unexpectedly; please report this bug")
        }
        Some(Ended::HandedOver) => {
            // Exiting now would restart this agent, which would take the sockets back.
            tracing::info!("the next agent serves this node; waiting for the stop signal");
            shutdown.next().await;
        }
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn start_error(error: impl StartError) -> anyhow::Error {
    if error.is_usage() {
        invalid(error.to_string())
    } else {
        error.into()
    }
}

/// Logs the first time that the process is ready.
fn log_ready(readiness: &Readiness) -> AbortOnDropHandle<()> {
    let readiness = readiness.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        readiness.ready().await;
        tracing::info!("ready");
    }))
}
