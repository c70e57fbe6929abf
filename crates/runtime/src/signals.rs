//! The signals that ask a process to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for SIGTERM and SIGINT. From the moment this exists they no longer kill the process.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Takes both signals over. Fails outside a Tokio runtime with I/O enabled.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one that comes: the first asks for an orderly end, a second for one now.
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
    async fn tells_which_signal_came() {
        let mut shutdown = Shutdown::new().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(shutdown.next().await, "SIGTERM");
        kill_process(getpid(), Signal::INT).unwrap();
        assert_eq!(shutdown.next().await, "SIGINT");
    }
}
