//! Runs `nft` and `iptables` with limits on time and output, in the C locale, without a shell.

use std::env;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::RedirectError;

/// Timeout of a program. iptables itself waits 5 s for its lock.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum size of a program's output, in bytes. rolegate's own chains and the built-in chains have
/// a few kilobytes.
const MAX_OUTPUT: usize = 1024 * 1024;
/// Maximum size of a program's error output in an error, in bytes.
const MAX_ERROR_OUTPUT: usize = 600;
/// Directories of the programs in images without a PATH for them.
const ADMIN_PATHS: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// The result of a program.
pub(crate) struct Done {
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its error output if it failed: one line, truncated.
    pub(crate) error_output: Option<String>,
}

/// Runs a program to its end, with `input` on its standard input.
pub(crate) async fn run(
    program: &'static str,
    hint: &'static str,
    args: &[&str],
    input: &str,
) -> Result<Done, RedirectError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => RedirectError::Missing { program, hint },
        _ => RedirectError::Io { program, source },
    };
    let mut path = env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(OsString::from(ADMIN_PATHS));
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that fails early closes its input; its error output has the reason.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let work = async {
        let ((), stdout, stderr) = tokio::join!(feed, read(stdout), read(stderr));
        Ok::<_, io::Error>((stdout?, stderr?, child.wait().await?))
    };
    let (stdout, stderr, status) = tokio::time::timeout(COMMAND_TIMEOUT, work)
        .await
        .map_err(|_| RedirectError::TimedOut {
            program,
            seconds: COMMAND_TIMEOUT.as_secs(),
        })?
        .map_err(io)?;
    if stdout.len() > MAX_OUTPUT {
        let limit = MAX_OUTPUT;
        return Err(RedirectError::OutputTooLarge { program, limit });
    }
    Ok(Done {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        error_output: (!status.success()).then(|| error_output(&stderr, status)),
    })
}

/// Reads to the end, so that the writer never blocks, and keeps one byte more than the limit.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe)
            .take(MAX_OUTPUT as u64 + 1)
            .read_to_end(&mut kept)
            .await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

/// Returns the error output of a failed program on one line.
fn error_output(stderr: &[u8], status: std::process::ExitStatus) -> String {
    let said = String::from_utf8_lossy(stderr)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if said.is_empty() {
        return status.to_string();
    }
    said.chars().take(MAX_ERROR_OUTPUT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, input: &str) -> Result<Done, RedirectError> {
        run("sh", "install a shell", &["-c", script], input).await
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_a_clean_environment() {
        let done = sh("cat; echo \"$LC_ALL,$HOME,$PATH\"", "rules,").await;
        let done = done.unwrap();
        assert_eq!(done.error_output, None);
        let rest = done.stdout.strip_prefix("rules,C,,").unwrap();
        assert!(rest.ends_with(&format!(":{ADMIN_PATHS}\n")), "{rest}");
    }

    #[tokio::test]
    async fn output_above_the_limit_is_an_error() {
        let zeros = async |count: usize| sh(&format!("head -c {count} /dev/zero"), "").await;
        assert_eq!(zeros(MAX_OUTPUT).await.unwrap().stdout.len(), MAX_OUTPUT);
        let error = zeros(MAX_OUTPUT + 1).await.err().unwrap().to_string();
        assert_eq!(error, "sh printed more than 1048576 bytes");
        // Nothing blocks a program that prints far more.
        assert!(zeros(3 * MAX_OUTPUT).await.is_err());
    }

    #[tokio::test]
    async fn a_failure_has_its_first_words_or_its_status() {
        let failed = async |script: &str| sh(script, "").await.unwrap().error_output;
        let silent = failed("exit 3").await;
        assert_eq!(silent.as_deref(), Some("exit status: 3"));
        let long = failed("head -c 2000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        assert_eq!(long.unwrap(), "x".repeat(MAX_ERROR_OUTPUT));
        assert_eq!(failed("echo warning >&2").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_stopped() {
        let error = sh("exec sleep 3600", "").await.err().unwrap().to_string();
        assert_eq!(error, "sh took longer than 15 s and was stopped");
    }
}
