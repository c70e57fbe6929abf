//! promtool, and Prometheus's own parser of expressions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::process::piped;
use crate::{hack, repository};

/// The selectors and labels of an expression.
#[derive(Debug, Clone, Deserialize)]
pub struct Expression {
    /// The selectors of series.
    pub selectors: Vec<Selector>,
    /// The labels that the expression groups or joins by.
    pub grouping: Vec<String>,
    /// The parser's error. Empty if the expression is valid.
    #[serde(default)]
    pub error: String,
}

/// A selector of series.
#[derive(Debug, Clone, Deserialize)]
pub struct Selector {
    /// The name of the metric.
    pub name: String,
    /// Conditions on labels.
    pub matchers: Vec<Matcher>,
    /// The functions and aggregations around the selector, the outermost first.
    pub functions: Vec<String>,
}

/// A condition on a label.
#[derive(Debug, Clone, Deserialize)]
pub struct Matcher {
    /// The label's name.
    pub label: String,
    /// `=`, `!=`, `=~` or `!~`.
    pub op: String,
    /// A value or a regular expression.
    pub value: String,
}

/// Runs `promtool ARGS` in the repository, with `input` as its standard input.
///
/// # Errors
/// Returns an error with the output if promtool cannot be built or run, or fails.
pub fn promtool(args: &[&str], input: &str) -> anyhow::Result<()> {
    let mut command = Command::new(hack("promtool", &[])?);
    let output = piped(command.args(args).current_dir(repository()), input)?;
    ensure!(
        output.status.success(),
        "promtool {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Parses expressions with Prometheus's own parser. A series with its labels is an expression too.
///
/// # Errors
/// Returns an error if the parser cannot be built or run. The error of an expression is part of its
/// result.
pub fn parse<'a>(expressions: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<Expression>> {
    let input: Vec<_> = expressions
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    let promtool = hack("promtool", &[])?;
    let parser = promtool.parent().map(|folder| folder.join("promql"));
    let parser = parser.filter(|parser| Path::exists(parser));
    let parser = parser.context("hack/promtool did not build the parser")?;
    let output = piped(&mut Command::new(parser), &input.join("\n"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let parsed = String::from_utf8(output.stdout)?;
    let parsed = parsed.lines().map(serde_json::from_str);
    let parsed: Vec<Expression> = parsed.collect::<Result<_, _>>()?;
    ensure!(
        parsed.len() == input.len(),
        "{} of {}",
        parsed.len(),
        input.len()
    );
    Ok(parsed)
}
