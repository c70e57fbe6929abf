//! The release binary as a child process, started as on a node.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::stand_ins::{Addresses, BASE_ROLE_ARN, NODE, REGION};

/// Longest wait for it to become ready.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);

/// A ready agent; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: File,
    /// For its runtime folder.
    _folder: TempDir,
    /// Where pods are answered.
    pub(crate) pods: SocketAddr,
    /// From the start of the process until it was ready.
    pub(crate) took: Duration,
}

impl Agent {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(
        binary: &Path,
        addresses: Addresses,
        further: &[&str],
    ) -> anyhow::Result<Self> {
        let pods = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = tempfile::tempfile()?;
        let folder = tempfile::tempdir()?;
        let begun = Instant::now();
        let child = Command::new(binary)
            .arg("agent")
            .arg(format!("--api-server=http://{}", addresses.api))
            .args(["--api-token=x", "--insecure", "--host-ip=127.0.0.1"])
            .arg(format!("--node={NODE}"))
            .arg(format!("--app-port={}", pods.port()))
            .arg(format!("--metrics-address={admin}"))
            .arg(format!("--base-role-arn={BASE_ROLE_ARN}"))
            .arg(format!("--metadata-addr={}", addresses.imds))
            .arg("--runtime-dir")
            .arg(folder.path())
            .args(further)
            .env_clear()
            .env("AWS_REGION", REGION)
            .env("AWS_ENDPOINT_URL", format!("http://{}", addresses.sts))
            .env(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                format!("http://{}", addresses.imds),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut agent = Self {
            child,
            log,
            _folder: folder,
            pods,
            took: Duration::ZERO,
        };
        while !is_ready(admin) {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended ({status}):\n{}", agent.log()?);
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "the agent is not ready after {PATIENCE:?}:\n{}",
                    agent.log()?
                );
            }
            std::thread::sleep(PAUSE);
        }
        agent.took = begun.elapsed();
        Ok(agent)
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

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody has, on any address.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    Ok(listener.local_addr()?.port())
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        std::io::Result::Ok(status.ends_with(b" 200"))
    };
    // Not listening yet is not ready.
    ask().unwrap_or(false)
}
