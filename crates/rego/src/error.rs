//! Errors of policies and data, worded for the author of the ConfigMap.

use regorus::Source;

use crate::{generated_names, text};

/// The reason why a ConfigMap with policies or data is rejected. The message names the entry and
/// line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The text is not Rego, or exceeds a limit.
    #[error("{0}")]
    Parse(String),
    /// The policy conflicts with other policies, or refers to something that does not exist.
    #[error("{0}")]
    Compile(String),
    /// A data ConfigMap is invalid.
    #[error("{0}")]
    Data(String),
}

impl LoadError {
    /// Returns OPA's code for this kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Parse(_) => "rego_parse_error",
            Self::Compile(_) => "rego_compile_error",
            Self::Data(_) => "invalid_parameter",
        }
    }

    pub(crate) fn at(source: &Source, line: u32, what: String) -> Self {
        Self::Parse(format!("{}, line {line}: {what}", source.get_path()))
    }

    pub(crate) fn parse(source: &Source, error: &anyhow::Error) -> Self {
        Self::Parse(one_line(source.get_path(), error))
    }

    pub(crate) fn compile(entry: &str, error: &anyhow::Error) -> Self {
        Self::Compile(one_line(entry, error))
    }
}

/// Converts the interpreter's message, which shows the line with an arrow, to `entry, line 3:
/// message`.
pub(crate) fn one_line(entry: &str, error: &anyhow::Error) -> String {
    let whole = error.to_string();
    let place = whole
        .lines()
        .find_map(|line| line.strip_prefix("--> "))
        .and_then(|place| {
            let (rest, _column) = place.rsplit_once(':')?;
            let (file, line) = rest.rsplit_once(':')?;
            Some((file, line))
        });
    let message = whole
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("error: "))
        .unwrap_or_else(|| whole.lines().next().unwrap_or(""));
    let message = match place {
        Some((file, line)) => format!("{file}, line {line}: {message}"),
        None => format!("{entry}: {message}"),
    };
    text::clean(&generated_names::written(&message), text::MAX_MESSAGE)
}
