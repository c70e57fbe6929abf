//! Somebody at a shell: kubectl, and scripts as documents have them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

/// How long a command may take unless it is said otherwise: a roll-out on a machine that has other
/// things to do, too.
const LIMIT: Duration = Duration::from_secs(300);

/// What a command left.
#[derive(Debug, Clone)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Its standard output.
    ///
    /// # Errors
    /// When it failed: with all that it wrote.
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

/// A bash on a node or in the site, to be set up and then run. What it starts in the background
/// ends with it.
#[derive(Debug)]
pub struct Shell {
    command: Command,
    limit: Duration,
}

impl Shell {
    /// A shell whose namespaces `enter` enters, with the programs of `tools` in its PATH. Of the
    /// developer's own environment it has PATH and nothing else.
    pub(super) fn new(mut enter: Command, tools: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(tools.to_owned()).chain(std::env::split_paths(&path));
        // A folder whose name has a colon is in no PATH; the tools' has none.
        let path = std::env::join_paths(folders).unwrap_or(path);
        enter.env_clear().env("PATH", path);
        Self {
            command: enter,
            limit: LIMIT,
        }
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.command.current_dir(folder.into());
        self
    }

    /// How long a script may take; five minutes if it isn't said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs a script to its end; it stops at the first command that fails.
    ///
    /// # Errors
    /// When it can't be run or doesn't end in time; not when it fails.
    pub async fn run(self, script: &str) -> anyhow::Result<Ran> {
        self.exec(&["bash", "-euo", "pipefail", "-c", script])
            .await
            .with_context(|| format!("the script was:\n{script}"))
    }

    /// Runs one program with its arguments, without a shell.
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
        let output = tokio::time::timeout(self.limit, command.kill_on_drop(true).output());
        let output = output
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
