//! Signals that stop a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives SIGTERM and SIGINT. Once it exists, they no longer kill the process.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Installs handlers for both signals. Fails outside a Tokio runtime with I/O enabled.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a signal and returns its name. The first asks for a graceful shutdown, the second
    /// for an immediate one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn the_signal_is_named() {
        let mut shutdown = Shutdown::new().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(shutdown.next().await, "SIGTERM");
        kill_process(getpid(), Signal::INT).unwrap();
        assert_eq!(shutdown.next().await, "SIGINT");
    }
}
