//! Python programs from PyPI: moto (an STS server) and unmodified AWS SDKs.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::hack;
use crate::process::Process;

/// Returns the path of a program of the test environment (`python`, `aws`, `moto_server`): in
/// `ROLEGATE_PYTHON`, or in the environment that `hack/python-env` creates from
/// `tests/requirements.txt`.
///
/// # Errors
/// Returns an error if the environment cannot be created.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    if let Some(bin) = BIN.get() {
        return Ok(bin.join(name));
    }
    let bin = match std::env::var_os("ROLEGATE_PYTHON") {
        Some(environment) => PathBuf::from(environment).join("bin"),
        None => hack("python-env", &["tests/requirements.txt"])?,
    };
    Ok(BIN.get_or_init(|| bin).join(name))
}

/// A running moto server, which serves STS (and the rest of AWS) on loopback and does not evaluate
/// trust policies. Dropping it kills it.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Moto {
    /// Starts moto on a free port of 127.0.0.1 and waits until it listens.
    ///
    /// # Errors
    /// Returns an error with the end of the output if it does not become ready.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(program("moto_server")?);
        command
            .args(["--host", "127.0.0.1", "--port", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .env("MOTO_IAM_LOAD_MANAGED_POLICIES", "true");
        let mut process = Process::spawn("moto", &command, &dir.path().join("log"))?;
        let line = process
            .wait_for_line("Running on http://", Duration::from_secs(120))
            .await?;
        let (_, port) = line.trim().rsplit_once(':').context("no port")?;
        let port = port.parse().context("moto's line without a port")?;
        Ok(Self {
            process,
            port,
            _dir: dir,
        })
    }

    /// Returns `http://127.0.0.1:PORT`, for `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns its port on the host's loopback, for [`crate::Forward`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its access log: one line for each request.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn moto_answers_the_aws_cli() {
        let moto = Moto::start().await.unwrap();
        let mut aws = tokio::process::Command::new(program("aws").unwrap());
        aws.args(["sts", "get-caller-identity", "--region", "eu-west-1"])
            .env("AWS_ENDPOINT_URL", moto.url())
            .env("AWS_ACCESS_KEY_ID", "AKIATEST")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .kill_on_drop(true);
        let output = aws.output().await.unwrap();
        let identity: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(identity["Account"], "123456789012");
        assert!(moto.log().contains("POST / HTTP"), "{}", moto.log());
    }
}
