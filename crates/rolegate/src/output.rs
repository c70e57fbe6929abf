//! What commands print: text in colour where a terminal wants it, JSON, YAML, names, and notes beside
//! them. A reader that has seen enough, such as `head`, ends a command quietly.

use std::io::{self, Write};
use std::process::ExitCode;

use anstream::AutoStream;
use anyhow::Context;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use rolegate_policy::basis::Basis;
use rolegate_policy::document;
use rolegate_policy::text::{BAD, plain};
use rolegate_runtime::version::Version;
use serde::Serialize;
use serde_json::{Value, json};

use crate::flags::invalid;

/// How data is printed, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// Text with more columns
    Wide,
    /// Names of objects, one a line
    Name,
    /// YAML
    Yaml,
    /// JSON, its fields stable
    Json,
}

/// The flag of commands that answer, for people by default.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputFlags {
    /// Format of the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

/// The flag of commands that write objects to apply.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ObjectOutputFlags {
    /// Format of the objects
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub(crate) output: Format,
}

/// A format of reports: those of [`Format`], and those that programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportFormat {
    /// One of those that all commands have.
    Data(Format),
    /// SARIF 2.1.0, for code hosts.
    Sarif,
    /// Annotations of GitHub's workflows.
    Github,
    /// JUnit's XML, for CI systems.
    Junit,
    /// TAP version 13.
    Tap,
}

impl ValueEnum for ReportFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Data(Format::Text),
            Self::Data(Format::Wide),
            Self::Data(Format::Name),
            Self::Data(Format::Yaml),
            Self::Data(Format::Json),
            Self::Sarif,
            Self::Github,
            Self::Junit,
            Self::Tap,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Data(format) => return format.to_possible_value(),
            Self::Sarif => ("sarif", "SARIF 2.1.0, for code hosts"),
            Self::Github => ("github", "Annotations of GitHub's workflows"),
            Self::Junit => ("junit", "JUnit's XML, for CI systems"),
            Self::Tap => ("tap", "TAP version 13"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// Writes text with its colours, without them where nobody sees them.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    written(AutoStream::auto(io::stdout().lock()).write_all(text.as_bytes()))
}

/// Writes text as it is.
pub(crate) fn raw(text: &str) -> anyhow::Result<()> {
    written(io::stdout().lock().write_all(text.as_bytes()))
}

/// Writes a value as JSON or YAML; `None` for a format that is neither.
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

/// Writes JSON, indented.
pub(crate) fn json(value: &Value) -> anyhow::Result<()> {
    raw(&format!("{value:#}\n"))
}

/// What an answer rests on, as people read it and as fields.
pub(crate) trait RestsOn {
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
fn with_rules(answer: &impl Serialize, rules: &impl RestsOn) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(answer).context("the answer is not JSON")?;
    if let Value::Object(fields) = &mut value {
        fields.insert("rules".into(), rules.value()?);
    }
    Ok(value)
}

/// An answer as people read it.
pub(crate) trait Shown {
    /// With ANSI colours; `is_wide` with more columns, where it is a table.
    fn text(&self, is_wide: bool) -> String;
    /// Names of the objects that it is about, as kubectl writes them.
    fn names(&self) -> Vec<String>;
}

/// Writes an answer, and what it rests on where the format has room for it.
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

/// Writes a value that is no answer of rules as JSON or YAML.
///
/// # Errors
/// A format that is neither, as wrong usage; or it can't be written.
pub(crate) fn value(format: Format, value: &Value) -> anyhow::Result<()> {
    structured(format, value).unwrap_or_else(|| {
        Err(invalid(
            "this answer is text, YAML or JSON: it names no objects",
        ))
    })
}

/// Writes the version of this program.
pub(crate) fn version(format: Format) -> anyhow::Result<ExitCode> {
    let Version { version, revision } = Version::CURRENT;
    match format {
        Format::Text | Format::Wide => raw(&format!("rolegate {}\n", Version::CURRENT))?,
        format => value(format, &json!({"version": version, "revision": revision}))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes names, one a line.
pub(crate) fn names(names: &[String]) -> anyhow::Result<()> {
    let lines = names.iter().map(|name| plain(name) + "\n");
    raw(&lines.collect::<String>())
}

/// Writes objects: `yaml` has their comments, and `json` is a list of them or one of them.
pub(crate) fn objects(format: Format, json: &Value, yaml: &str) -> anyhow::Result<()> {
    let one = std::slice::from_ref(json);
    let all = json.get("items").and_then(Value::as_array);
    let all = all.map_or(one, Vec::as_slice);
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
            text(&rolegate_policy::text::table(&titles, all.iter().map(row)))
        }
    }
}

/// The name of an object as kubectl writes it: `pod/x`, `deployment.apps/x`.
pub(crate) fn object_name(object: &Value) -> String {
    let part = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let kind = part("/kind").unwrap_or_default().to_lowercase();
    let name = part("/metadata/name").unwrap_or_default();
    match part("/apiVersion").and_then(|version| version.split_once('/')) {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

/// Several YAML documents as one JSON value: the object, or a list of all of them.
pub(crate) fn documents(texts: &str) -> anyhow::Result<Value> {
    let all = serde_saphyr::from_multiple::<Value>(texts);
    let mut all = all.context("the objects are not YAML")?;
    Ok(match all.len() {
        1 => all.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": all}),
    })
}

/// Tells people something beside the answer.
pub(crate) fn note(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "note: {}", plain(text));
}

/// Tells what makes the command fail, beside the answer.
pub(crate) fn failure(text: &str) {
    error(&plain(text));
}

/// Prints an error in the style of those about usage. Its text may have several lines.
pub(crate) fn error(text: &str) {
    let line = format!("{BAD}error:{BAD:#} {text}\n");
    let _ = AutoStream::auto(io::stderr()).write_all(line.as_bytes());
}

/// Tells what an answer rests on beside it, where the answer's format has no room for it.
pub(crate) fn note_rules(rules: &Basis) {
    for (name, value) in rules.rows() {
        note(&format!("{name} {value}"));
    }
}

/// The reader of standard output is gone, which ends a command quietly.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct Closed;

/// The result of writing to standard output. That its reader is gone is no failure.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the answer"),
    }
}
