//! The linter of metrics that `promtool check metrics` runs.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::hack;

/// Lints metrics in the text format and returns the problems, one line each.
///
/// # Errors
/// Returns an error if the linter cannot be built or run, or cannot parse the text.
pub fn promlint(metrics: &str) -> anyhow::Result<Vec<String>> {
    let mut child = Command::new(hack("promlint", &[])?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run promlint")?;
    let mut input = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        // If the linter exits early, it reports the reason itself.
        scope.spawn(move || input.write_all(metrics.as_bytes()));
        child.wait_with_output()
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code().is_some_and(|code| code < 2), "{said}");
    let problems = String::from_utf8(output.stdout)?;
    Ok(problems.lines().map(str::to_owned).collect())
}
