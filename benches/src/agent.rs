//! The agent, started as on a node.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::broker::authority::{Authority, HOST};
use crate::rolegate::{Rolegate, free_address};
use crate::stand_ins::{Addresses, BASE_ROLE_ARN, NODE, REGION};

/// A ready agent. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Rolegate,
    /// The runtime directory.
    _folder: TempDir,
    /// The address for pods.
    pub(crate) pods: SocketAddr,
}

impl Agent {
    /// Starts it with Kubernetes and AWS, and waits until it is ready.
    pub(crate) fn start(
        binary: &Path,
        addresses: Addresses,
        further: &[&str],
    ) -> anyhow::Result<Self> {
        Self::started(binary, addresses, |command| {
            command
                .arg(format!("--api-server=http://{}", addresses.api))
                .env("ROLEGATE_API_TOKEN", "x")
                .arg("--insecure")
                .arg(format!("--base-role-arn={BASE_ROLE_ARN}"))
                .args(further)
                .env("AWS_REGION", REGION)
                .env("AWS_ENDPOINT_URL", format!("http://{}", addresses.sts))
                .env(
                    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                    format!("http://{}", addresses.imds),
                );
        })
    }

    /// Starts it with a broker only, and waits until it is ready.
    pub(crate) fn with_broker(
        binary: &Path,
        addresses: Addresses,
        broker: SocketAddr,
        authority: &Authority,
    ) -> anyhow::Result<Self> {
        let pair = authority.node(NODE)?;
        Self::started(binary, addresses, |command| {
            command
                .arg(format!("--broker=https://{HOST}:{}", broker.port()))
                .arg("--broker-ca")
                .arg(authority.ca())
                .arg("--broker-cert")
                .arg(&pair.certificate)
                .arg("--broker-key")
                .arg(&pair.key);
        })
    }

    fn started(
        binary: &Path,
        addresses: Addresses,
        source: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let (pods, admin) = (free_address()?, free_address()?);
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(binary);
        command
            .arg("agent")
            .arg("--host-ip=127.0.0.1")
            .arg(format!("--node={NODE}"))
            .arg(format!("--app-port={}", pods.port()))
            .arg(format!("--metrics-address={admin}"))
            .arg(format!("--metadata-addr={}", addresses.imds))
            .arg("--runtime-dir")
            .arg(folder.path())
            .env_clear();
        source(&mut command);
        Ok(Self {
            process: Rolegate::start(&mut command, admin)?,
            _folder: folder,
            pods,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the time from the start of the process until it was ready.
    pub(crate) fn took(&self) -> Duration {
        self.process.took
    }
}
