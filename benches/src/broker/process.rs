//! A broker of the release binary.

use std::net::SocketAddr;
use std::process::Command;

use super::authority::Authority;
use crate::harness::Settings;
use crate::rolegate::{Rolegate, free_address};
use crate::stand_ins::{Addresses, BASE_ROLE_ARN, REGION};

/// A ready broker. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Broker {
    process: Rolegate,
    /// The address for agents.
    pub(crate) agents: SocketAddr,
}

impl Broker {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(
        settings: &Settings,
        authority: &Authority,
        addresses: Addresses,
        further: &[&str],
    ) -> anyhow::Result<Self> {
        let (agents, admin, ledger) = (free_address()?, free_address()?, free_address()?);
        let pair = authority.broker()?;
        let mut command = Command::new(&settings.rolegate);
        command
            .arg("broker")
            .arg(format!("--api-server=http://{}", addresses.api))
            .env("ROLEGATE_API_TOKEN", "x")
            .args(["--insecure", "--cluster-config=off"])
            .args(["--log-level=warn", "--certificate=files"])
            .arg("--client-ca")
            .arg(authority.ca())
            .arg("--tls-cert")
            .arg(&pair.certificate)
            .arg("--tls-key")
            .arg(&pair.key)
            .arg(format!("--name=broker-{}", agents.port()))
            .arg(format!("--listen-address={agents}"))
            .arg(format!("--metrics-address={admin}"))
            .arg(format!("--ledger-address={ledger}"))
            .arg(format!("--base-role-arn={BASE_ROLE_ARN}"))
            .arg(format!("--metadata-addr={}", addresses.imds))
            .args(further)
            .env_clear()
            .env("AWS_REGION", REGION)
            .env("AWS_ENDPOINT_URL", format!("http://{}", addresses.sts))
            .env(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                format!("http://{}", addresses.imds),
            );
        Ok(Self {
            process: Rolegate::start(&mut command, admin)?,
            agents,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}
