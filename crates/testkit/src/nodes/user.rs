//! Shells: kubectl, and scripts as in the documentation.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

/// Default timeout of a command: enough for a rollout on a busy machine.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// The result of a command.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Returns its standard output.
    ///
    /// # Errors
    /// Returns an error with all output if it failed.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(
            self.status.success(),
            "{}\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// A bash on a node or in the control plane's network, configured and then run. Its background
/// processes end with it.
#[derive(Debug)]
pub struct Shell {
    command: Command,
    limit: Duration,
}

impl Shell {
    /// Creates a shell in the namespaces that `enter` enters, with the programs of `tools` in its
    /// PATH. From the developer's own environment it gets PATH alone.
    pub(super) fn new(mut enter: Command, tools: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(tools.to_owned()).chain(std::env::split_paths(&path));
        // A directory with a colon in its name cannot be in PATH; `tools` has none.
        let path = std::env::join_paths(folders).unwrap_or(path);
        enter.env_clear().env("PATH", path);
        Self {
            command: enter,
            limit: DEFAULT_TIMEOUT,
        }
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.command.current_dir(folder.into());
        self
    }

    /// Sets the timeout of a script. The default is five minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs a script to completion. It stops at the first command that fails.
    ///
    /// # Errors
    /// Returns an error if it cannot be run or times out, but not if it fails.
    pub async fn run(self, script: &str) -> anyhow::Result<Ran> {
        self.exec(&["bash", "-euo", "pipefail", "-c", script])
            .await
            .with_context(|| format!("the script was:\n{script}"))
    }

    /// Runs a program with its arguments, without a shell.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn exec(self, program: &[&str]) -> anyhow::Result<Ran> {
        let entered = self.command;
        // The kernel ends it when this process does, and its children when it does.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(entered.get_program())
            .args(entered.get_args())
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(program)
            .env_clear()
            .envs(
                entered
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .stdin(Stdio::null());
        if let Some(folder) = entered.get_current_dir() {
            command.current_dir(folder);
        }
        let mut command = tokio::process::Command::from(command);
        let output = tokio::time::timeout(self.limit, command.kill_on_drop(true).output())
            .await
            .with_context(|| format!("still runs after {:?}", self.limit))?
            .context("cannot run setpriv and unshare (util-linux)")?;
        Ok(Ran {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
