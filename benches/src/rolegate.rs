//! The release binary as a child process.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Timeout until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);

/// A ready process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Rolegate {
    child: Child,
    log: File,
    /// The time from the start of the process until it was ready.
    pub(crate) took: Duration,
}

impl Rolegate {
    /// Starts it and waits until `admin` reports that it is ready.
    pub(crate) fn start(command: &mut Command, admin: SocketAddr) -> anyhow::Result<Self> {
        let log = tempfile::tempfile()?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        let begun = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut process = Self {
            child,
            log,
            took: Duration::ZERO,
        };
        while !is_ready(admin) {
            if let Some(status) = process.child.try_wait()? {
                bail!("rolegate ended ({status}):\n{}", process.log()?);
            }
            if begun.elapsed() > READY_TIMEOUT {
                bail!(
                    "rolegate is not ready after {READY_TIMEOUT:?}:\n{}",
                    process.log()?
                );
            }
            std::thread::sleep(PAUSE);
        }
        process.took = begun.elapsed();
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn log(&mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.log.rewind()?;
        self.log.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Rolegate {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a loopback address with an unused port.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let port = listener.local_addr()?.port();
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(READY_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        std::io::Result::Ok(status.ends_with(b" 200"))
    };
    // Not listening yet counts as not ready.
    ask().unwrap_or(false)
}
