//! Child processes that end with the test process, however it ends, and whose output is kept.
//!
//! `setpriv --pdeathsig KILL` makes the kernel kill the child when its parent dies. "Parent" is the
//! thread that started it, and test threads come and go, so all are started by one thread that
//! lives as long as the process.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::eventually;

/// Maximum number of output lines in an error.
const TAIL_LINES: usize = 30;
/// Time that a process may take to exit after SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a program to completion with `input` as its standard input, and returns its output.
///
/// # Errors
/// Returns an error if it cannot be run.
pub(crate) fn piped(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = thread::scope(|scope| {
        // If the program exits early, it reports the reason itself.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    })?;
    Ok(output)
}

/// A running child process. Dropping it kills it. If a test panics, the end of its output is
/// printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`. Its environment is PATH and
    /// the variables that the command sets: nothing of the developer's own (`AWS_PROFILE`,
    /// `KUBECONFIG`…). It runs in the host's network, whichever thread calls this; for a lab's use
    /// a command of [`crate::lab::Namespace::command`].
    ///
    /// # Errors
    /// Returns an error if the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, command: &Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let set = command
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?)));
        let mut bound = Command::new("setpriv");
        bound
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(set)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        if let Some(dir) = command.get_current_dir() {
            bound.current_dir(dir);
        }
        let child = spawn_on_own_thread(bound)
            .with_context(|| format!("cannot start {name} (through setpriv of util-linux)"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Returns its name in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process ID, for signals and for /proc.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns all output so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Returns its exit status, once it has exited.
    ///
    /// # Errors
    /// Returns an error if the operating system does not report it.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Polls `check` as [`eventually`] does, but fails at once when the process has exited.
    ///
    /// # Errors
    /// Returns an error with the end of the output if the process exits or the deadline passes
    /// first.
    pub async fn until<T>(
        &mut self,
        deadline: Duration,
        mut check: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let polled = eventually(deadline, async || match check().await {
            Ok(value) => Ok(Ok(value)),
            Err(error) => match self.child.try_wait()? {
                Some(status) => Ok(Err(error.context(format!("it left with {status}")))),
                None => Err(error),
            },
        });
        polled
            .await
            .and_then(|value| value)
            .with_context(|| format!("{} did not get ready\n{}", self.name, self.tail()))
    }

    /// Waits for a line of output that contains `text` and returns it.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn wait_for_line(
        &mut self,
        text: &str,
        deadline: Duration,
    ) -> anyhow::Result<String> {
        let log = self.log.clone();
        self.until(deadline, async || {
            let output = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            // The last line may be incomplete.
            let whole = output.rsplit_once('\n').map_or("", |(lines, _)| lines);
            whole
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
                .with_context(|| format!("no line with {text:?}"))
        })
        .await
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// Returns an error if it has exited.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("{} can't be signalled", self.name))
    }

    /// Limits its memory to the current use, as a fault.
    ///
    /// # Errors
    /// Returns an error if it has exited, or the limit cannot be set.
    pub fn starve(&self) -> anyhow::Result<()> {
        let limit = Rlimit {
            current: Some(0),
            maximum: None,
        };
        prlimit(Some(Pid::from_child(&self.child)), Resource::As, limit)
            .with_context(|| format!("{} can't be limited", self.name))?;
        Ok(())
    }

    /// Sends SIGTERM and waits until it has exited.
    ///
    /// # Errors
    /// Returns an error if it has not exited after half a minute.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        eventually(EXIT_TIMEOUT, async || {
            self.child.try_wait()?.context("it ignores SIGTERM")
        })
        .await
        .with_context(|| format!("{} did not stop\n{}", self.name, self.tail()))
    }

    /// Kills it and waits until it has exited.
    pub fn kill(&mut self) {
        // Both fail only if it has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns the end of its output, for error messages.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
        last.map(|line| format!("  {} | {line}\n", self.name))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "shown with the failed test's output")]
            {
                eprint!("{}", self.tail());
            }
        }
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` from the thread that lives as long as the process.
fn spawn_on_own_thread(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The caller may be gone. Then the child is dropped here and lives until the
                // process ends.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = mpsc::channel();
    if spawner.send((command, reply)).is_err() {
        bail!("the thread that starts child processes has exited");
    }
    Ok(child.recv()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("WORD", "hello");
        Process::spawn("sh", &command, log).unwrap()
    }

    #[tokio::test]
    async fn lines_are_found_and_the_environment_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo say $WORD; exec sleep 60", &dir.path().join("log"));
        let line = process.wait_for_line("say", Duration::from_secs(10)).await;
        assert_eq!(line.unwrap(), "say hello");
        assert!(!process.stop().await.unwrap().success());
    }

    #[tokio::test]
    async fn an_early_exit_is_reported_at_once_with_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo broken >&2; exit 3", &dir.path().join("log"));
        let waited = process.wait_for_line("ready", Duration::from_secs(600));
        let error = format!("{:#}", waited.await.unwrap_err());
        assert!(error.contains("sh | broken"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn children_outlive_their_thread_but_not_their_handle() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = thread::spawn(move || shell("echo up; exec sleep 60", &log))
            .join()
            .unwrap();
        let up = process.wait_for_line("up", Duration::from_secs(10));
        up.await.unwrap();
        assert!(process.exited().unwrap().is_none());
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
