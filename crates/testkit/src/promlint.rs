//! The linter of metrics that `promtool check metrics` runs.

use std::process::Command;

use anyhow::ensure;

use crate::hack;
use crate::process::piped;

/// Lints metrics in the text format and returns the problems, one line each.
///
/// # Errors
/// Returns an error if the linter cannot be built or run, or cannot parse the text.
pub fn promlint(metrics: &str) -> anyhow::Result<Vec<String>> {
    let output = piped(&mut Command::new(hack("promlint", &[])?), metrics)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code().is_some_and(|code| code < 2), "{said}");
    let problems = String::from_utf8(output.stdout)?;
    Ok(problems.lines().map(str::to_owned).collect())
}
