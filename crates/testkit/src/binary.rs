//! The real `rolegate` binary as a child process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::process::Process;
use crate::repository;

/// A running `rolegate`. Dereferences to its [`Process`] (`log`, `wait_for_line`, `stop`,
/// `signal`…). Dropping it kills it.
#[derive(Debug)]
pub struct Rolegate {
    process: Process,
    _dir: TempDir,
}

impl Rolegate {
    /// Starts `rolegate ARGS` with only PATH and `envs` as its environment.
    ///
    /// # Errors
    /// Returns an error if the binary cannot be built or started.
    pub fn spawn<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        args: &[&str],
        envs: impl IntoIterator<Item = (K, V)>,
    ) -> anyhow::Result<Self> {
        let mut command = Self::command()?;
        command.args(args).envs(envs);
        Self::spawn_command(&command)
    }

    /// Starts a command built from [`Self::command`], or one that wraps it, such as `ip netns exec
    /// NAME rolegate`, as long as it ends in `exec` and so keeps the process ID.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn spawn_command(command: &Command) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        Ok(Self {
            process: Process::spawn("rolegate", command, &log)?,
            _dir: dir,
        })
    }

    /// Runs `rolegate ARGS` to completion.
    ///
    /// # Errors
    /// Returns an error if the binary cannot be built or started, but not if it fails.
    pub async fn output(args: &[&str]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::from(Self::command()?);
        command.args(args).kill_on_drop(true);
        let limit = Duration::from_secs(120);
        let output = tokio::time::timeout(limit, command.output()).await;
        Ok(output.with_context(|| format!("rolegate {args:?} still runs after {limit:?}"))??)
    }

    /// Returns the command `rolegate` without arguments.
    ///
    /// # Errors
    /// Returns an error if the binary cannot be built.
    pub fn command() -> anyhow::Result<Command> {
        let mut command = Command::new(Self::path()?);
        // Variables for the tests, such as ROLEGATE_BINARY, are not for the program.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"ROLEGATE_") {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    /// Returns the path of the binary: `ROLEGATE_BINARY`, or the one in this test's own target
    /// directory, which is built if it is missing or older than the sources.
    ///
    /// # Errors
    /// Returns an error if it cannot be built.
    pub fn path() -> anyhow::Result<PathBuf> {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        if let Some(path) = BINARY.get() {
            return Ok(path.clone());
        }
        let path = match std::env::var_os("ROLEGATE_BINARY") {
            Some(path) => PathBuf::from(path),
            None => built()?,
        };
        Ok(BINARY.get_or_init(|| path).clone())
    }
}

impl std::ops::Deref for Rolegate {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for Rolegate {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn built() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/debug/deps/NAME-HASH
    let profile = test.ancestors().nth(2).context("no target folder")?;
    let path = profile.join("rolegate");
    let sources = newest(&repository().join("crates"))?;
    let fresh = |path: &Path| {
        let built = path.metadata().and_then(|metadata| metadata.modified());
        built.is_ok_and(|built| built >= sources)
    };
    if !fresh(&path) {
        let target = profile.parent().context("no target folder")?;
        let status = Command::new("cargo")
            // As `make build` does, for one set of features of the dependencies.
            .args(["build", "--locked", "--quiet"])
            .args(["--workspace", "--bins", "--examples"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(repository())
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "rolegate does not build");
    }
    Ok(path)
}

/// Returns the latest modification time of the files under `dir`.
fn newest(dir: &Path) -> anyhow::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let changed = if entry.file_type()?.is_dir() {
            self::newest(&entry.path())?
        } else {
            entry.metadata()?.modified()?
        };
        newest = newest.max(changed);
    }
    Ok(newest)
}
