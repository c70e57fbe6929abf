//! What the policy commands write: text in colour where a terminal wants it, JSON, YAML, and notes
//! beside them.

use std::io::{self, Write};

use anstream::AutoStream;
use anyhow::Context;
use clap::ValueEnum;
use rolegate_policy::basis::Basis;
use rolegate_policy::document;
use rolegate_policy::text::plain;
use serde::Serialize;
use serde_json::Value;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// One JSON document, its fields stable
    Json,
    /// The same as YAML
    Yaml,
}

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectFormat {
    /// A stream of YAML with comments
    Yaml,
    /// One JSON list
    Json,
}

/// Writes text with its colours, without them where nobody sees them.
pub(super) fn text(text: &str) -> anyhow::Result<()> {
    written(AutoStream::auto(io::stdout().lock()).write_all(text.as_bytes()))
}

/// Writes text as it is.
pub(super) fn raw(text: &str) -> anyhow::Result<()> {
    written(io::stdout().lock().write_all(text.as_bytes()))
}

/// Writes JSON, indented.
pub(super) fn json(value: &Value) -> anyhow::Result<()> {
    raw(&format!("{value:#}\n"))
}

/// What an answer rests on, as people read it and as fields.
pub(super) trait RestsOn {
    /// The lines below the answer.
    fn text(&self) -> String;
    /// The field `rules` of the answer.
    fn value(&self) -> anyhow::Result<Value>;
}

impl RestsOn for Basis {
    fn text(&self) -> String {
        Self::text(self, "rules in force")
    }

    fn value(&self) -> anyhow::Result<Value> {
        serde_json::to_value(self).context("the rules in force are not JSON")
    }
}

/// An answer with what it rests on, as JSON.
pub(super) fn with_rules(answer: &impl Serialize, rules: &impl RestsOn) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(answer).context("the answer is not JSON")?;
    if let Value::Object(fields) = &mut value {
        fields.insert("rules".into(), rules.value()?);
    }
    Ok(value)
}

/// Writes an answer in one of the formats.
pub(super) fn answer(
    format: Format,
    answer: &impl Serialize,
    rules: &impl RestsOn,
    shown: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if format == Format::Text {
        return text(&(shown() + &rules.text()));
    }
    let value = with_rules(answer, rules)?;
    match format {
        Format::Json => json(&value),
        Format::Text | Format::Yaml => raw(&document::yaml(&value)?),
    }
}

/// Tells people something beside the answer.
pub(super) fn note(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "note: {}", plain(text));
}

/// Tells what makes the command fail, beside the answer.
pub(super) fn failure(text: &str) {
    let _ = writeln!(io::stderr(), "rolegate: {}", plain(text));
}

/// Tells what an answer rests on beside it, where the answer's format has no room for it.
pub(super) fn note_rules(rules: &Basis) {
    for (name, value) in rules.rows() {
        note(&format!("{name} {value}"));
    }
}

fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        // A reader that has seen enough, such as `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the answer"),
    }
}
