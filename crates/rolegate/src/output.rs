//! Output of commands: coloured text on a terminal, JSON, YAML, names, and notes on standard error.
//! A closed standard output, as with `head`, ends a command without an error.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::LazyLock;

use anstream::AutoStream;
use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use rolegate_core::text::{escape_json, plain};
use rolegate_inventory::basis::Basis;
use rolegate_policy::document;
use rolegate_report::format::FORMATS;
use rolegate_report::text::BAD;
use rolegate_runtime::version::Version;
use serde::Serialize;
use serde_json::{Value, json};

use crate::flags::invalid;

/// The output format, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people
    Text,
    /// Text with more columns
    Wide,
    /// Names of objects, one per line
    Name,
    /// YAML
    Yaml,
    /// JSON with stable field names
    Json,
}

/// The output flag of commands that print text by default.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputFlags {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

/// The output flag of commands that print objects to apply.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ObjectOutputFlags {
    /// Output format of the objects
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub(crate) output: Format,
}

/// A format of reports: those of [`Format`], and formats for other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportFormat {
    /// A format that all commands support.
    Data(Format),
    /// A format for other programs.
    Exchange(&'static rolegate_report::format::Format),
}

impl ValueEnum for ReportFormat {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<ReportFormat>> = LazyLock::new(|| {
            let data = Format::value_variants().iter().copied();
            let exchange = FORMATS.iter().map(ReportFormat::Exchange);
            data.map(ReportFormat::Data).chain(exchange).collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Data(format) => format.to_possible_value(),
            Self::Exchange(format) => Some(PossibleValue::new(format.name).help(format.help)),
        }
    }
}

/// Parses the formats of reports that are not about lines of manifests.
pub(crate) fn case_format() -> impl TypedValueParser<Value = ReportFormat> {
    let formats = ReportFormat::value_variants()
        .iter()
        .filter(|format| match format {
            ReportFormat::Data(_) => true,
            ReportFormat::Exchange(format) => format.takes_cases(),
        });
    PossibleValuesParser::new(formats.filter_map(ValueEnum::to_possible_value))
        .try_map(|name| ReportFormat::from_str(&name, false))
}

/// Writes text, with its colours on a terminal only.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    written(AutoStream::auto(io::stdout().lock()).write_all(text.as_bytes()))
}

/// Writes text unchanged.
pub(crate) fn raw(text: &str) -> anyhow::Result<()> {
    written(io::stdout().lock().write_all(text.as_bytes()))
}

/// Writes a value as JSON or YAML. Returns `None` for other formats.
fn structured(format: Format, value: &Value) -> Option<anyhow::Result<()>> {
    match format {
        Format::Json => Some(json(value)),
        Format::Yaml => Some(match document::yaml(value) {
            Ok(text) => raw(&text),
            Err(error) => Err(error.into()),
        }),
        Format::Text | Format::Wide | Format::Name => None,
    }
}

/// Writes indented JSON.
pub(crate) fn json(value: &Value) -> anyhow::Result<()> {
    raw(&escape_json(&format!("{value:#}\n")))
}

/// The rules behind an answer, as text and as fields.
pub(crate) trait RestsOn {
    /// Returns the lines below the answer.
    fn text(&self) -> String;
    /// Returns the field `rules` of the answer.
    fn value(&self) -> anyhow::Result<Value>;
}

impl RestsOn for Basis {
    fn text(&self) -> String {
        Self::text(self, "rules in force")
    }

    fn value(&self) -> anyhow::Result<Value> {
        serde_json::to_value(self).context("cannot serialize the rules in force")
    }
}

/// Returns an answer and its rules as JSON.
fn with_rules(answer: &impl Serialize, rules: &impl RestsOn) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(answer).context("cannot serialize the answer")?;
    if let Value::Object(fields) = &mut value {
        fields.insert("rules".into(), rules.value()?);
    }
    Ok(value)
}

/// An answer that can be printed.
pub(crate) trait Shown {
    /// Returns text with ANSI colours. With `is_wide`, tables have more columns.
    fn text(&self, is_wide: bool) -> String;
    /// Returns the names of its objects, in kubectl's format.
    fn names(&self) -> Vec<String>;
}

/// Writes an answer, and its rules if the format has room for them.
pub(crate) fn answer(
    format: Format,
    answer: &(impl Serialize + Shown),
    rules: &impl RestsOn,
) -> anyhow::Result<()> {
    match format {
        Format::Text | Format::Wide => text(&(answer.text(format == Format::Wide) + &rules.text())),
        Format::Name => names(&answer.names()),
        Format::Json | Format::Yaml => value(format, &with_rules(answer, rules)?),
    }
}

/// Writes a value that is not based on rules, as JSON or YAML.
///
/// # Errors
/// Returns a usage error for another format, or an error if writing fails.
pub(crate) fn value(format: Format, value: &Value) -> anyhow::Result<()> {
    structured(format, value)
        .unwrap_or_else(|| Err(invalid("this command supports text, YAML and JSON only")))
}

/// Prints the version of this program.
pub(crate) fn version(format: Format) -> anyhow::Result<ExitCode> {
    let Version {
        version,
        revision,
        date,
    } = Version::CURRENT;
    match format {
        Format::Text | Format::Wide => raw(&format!("rolegate {}\n", Version::CURRENT))?,
        format => value(
            format,
            &json!({"version": version, "revision": revision, "date": date}),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints names, one per line.
pub(crate) fn names(names: &[String]) -> anyhow::Result<()> {
    let lines = names.iter().map(|name| plain(name) + "\n");
    raw(&lines.collect::<String>())
}

/// Writes objects. `yaml` contains their comments; `json` is one object or a list.
pub(crate) fn objects(format: Format, json: &Value, yaml: &str) -> anyhow::Result<()> {
    let one = std::slice::from_ref(json);
    let all = json
        .get("items")
        .and_then(Value::as_array)
        .map_or(one, Vec::as_slice);
    match format {
        Format::Yaml => raw(yaml),
        Format::Json => self::json(json),
        Format::Name => names(&all.iter().map(object_name).collect::<Vec<_>>()),
        Format::Text | Format::Wide => {
            let part = |object: &Value, pointer| {
                let text = object.pointer(pointer).and_then(Value::as_str);
                text.unwrap_or("-").to_owned()
            };
            let mut columns = vec![("KIND", "/kind"), ("NAME", "/metadata/name")];
            if format == Format::Wide {
                columns.insert(0, ("API VERSION", "/apiVersion"));
                columns.push(("NAMESPACE", "/metadata/namespace"));
            }
            let row = |object| columns.iter().map(|(_, at)| part(object, at)).collect();
            let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
            text(&rolegate_report::text::table(&titles, all.iter().map(row)))
        }
    }
}

/// Returns the name of an object in kubectl's format: `pod/x`, `deployment.apps/x`.
pub(crate) fn object_name(object: &Value) -> String {
    let part = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let kind = part("/kind").unwrap_or_default().to_lowercase();
    let name = part("/metadata/name").unwrap_or_default();
    match part("/apiVersion").and_then(|version| version.split_once('/')) {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

/// Parses YAML documents into one JSON value: the object, or a list of all objects.
pub(crate) fn documents(texts: &str) -> anyhow::Result<Value> {
    let mut all =
        serde_saphyr::from_multiple::<Value>(texts).context("cannot parse the objects as YAML")?;
    Ok(match all.len() {
        1 => all.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": all}),
    })
}

/// Prints a note on standard error.
pub(crate) fn note(text: &str) {
    // Ignored: standard error may be closed.
    let _ = writeln!(io::stderr(), "note: {}", plain(text));
}

/// Prints the reason why the command fails on standard error.
pub(crate) fn failure(text: &str) {
    error(&plain(text));
}

/// Prints an error in the style of usage errors. Its text may have several lines.
pub(crate) fn error(text: &str) {
    let line = format!("{BAD}error:{BAD:#} {text}\n");
    let _ = AutoStream::auto(io::stderr()).write_all(line.as_bytes());
}

/// Prints the rules behind an answer on standard error, for formats without room for them.
pub(crate) fn note_rules(rules: &Basis) {
    for (name, value) in rules.rows() {
        note(&format!("{name} {value}"));
    }
}

/// The reader of standard output is gone, which ends a command without an error.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct Closed;

/// Converts the result of a write to standard output. A closed output is not a failure.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_of_reports_is_a_choice() {
        for format in FORMATS {
            let parsed = ReportFormat::from_str(format.name, false);
            assert_eq!(parsed, Ok(ReportFormat::Exchange(format)));
            assert!(Format::from_str(format.name, false).is_err(), "{format:?}");
        }
    }
}
