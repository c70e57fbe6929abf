//! `rolegate policy check`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use rolegate_policy::check::{Creator, Manifest, check};
use rolegate_policy::overlay::is_core;
use serde_json::{Value, json};

use super::files::{self, Manifests};
use super::flags::{ReadFlags, RulesFrom, name};
use super::load::Objects;
use super::{REFUSED, output};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    /// For people
    Text,
    /// One JSON document, its fields stable
    Json,
    /// SARIF 2.1.0, for code hosts
    Sarif,
    /// Annotations of GitHub's workflows
    Github,
}

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Judge manifests as the webhook would judge their creation.\n\n\
Takes streams of YAML, JSON, lists and what Helm prints. Rules are those of the cluster, or of \
manifests with --rules. Namespaces among the checked manifests count as they are written there; other \
rules among them don't, so that nobody allows himself what he asks for. The objects are judged for an \
ordinary user unless --as and --as-group name who applies them.";

/// Arguments of `rolegate policy check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy check -f deploy/ --rules platform/rules/
  helm template shop ./chart | rolegate policy check --rules rules/ -f -
  rolegate policy check -f app.yaml -o sarif > rolegate.sarif

Exit codes: 0 nothing would be refused, 1 failed, 3 something would be refused, 64 wrong usage.")]
pub(super) struct CheckArguments {
    /// Manifest, folder (with all below it) or - for standard input; may be repeated
    #[arg(short, long, value_name = "PATH", required = true)]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    from: RulesFrom,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAME", default_value = "default", value_parser = name)]
    namespace: String,
    /// User who applies the manifests
    #[arg(long = "as", value_name = "USER", default_value = "rolegate:check")]
    user: String,
    /// Group of that user; may be repeated
    #[arg(
        long = "as-group",
        value_name = "GROUP",
        default_value = "system:authenticated"
    )]
    group: Vec<String>,
    /// How the report is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: ReportFormat,
    #[command(flatten)]
    read: ReadFlags,
}

/// Checks.
pub(super) async fn run(arguments: CheckArguments) -> anyhow::Result<ExitCode> {
    let reading = arguments.read.reading()?;
    files::validate(arguments.filename.iter().chain(&arguments.from.rules))?;
    let manifests = files::read(&arguments.filename)?;
    let client = arguments.read.client();
    let rules = Objects::from(&arguments.from.rules, &client, &reading).await?;
    // A mistake in the rules is told with its line.
    rules.load(&reading)?;
    let (namespaces, assumed) = namespaces(rules.values(), &manifests, &arguments.namespace);
    let loaded = rules.overlaid(&namespaces, false).load(&reading)?;
    for note in loaded.assumed.iter().chain(&assumed) {
        output::note(note);
    }
    let gate = loaded.gate(&reading);
    let creator = Creator {
        user: arguments.user,
        groups: arguments.group,
    };
    let all = manifests.iter().flat_map(|one| {
        one.documents.iter().map(|document| Manifest {
            file: &one.file,
            document,
        })
    });
    let report = check(&gate, all, &creator, &arguments.namespace, Timestamp::now());
    match arguments.output {
        ReportFormat::Text => output::text(&report.text())?,
        ReportFormat::Json => output::json(&serde_json::to_value(&report)?)?,
        ReportFormat::Sarif => output::json(&report.sarif())?,
        ReportFormat::Github => output::raw(&report.github())?,
    }
    Ok(if report.refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

/// The namespaces of the manifests, and those that objects are in and nobody describes: they are
/// made without annotations, as by `helm install --create-namespace`.
fn namespaces(
    rules: &[Value],
    manifests: &[Manifests],
    default: &str,
) -> (Vec<Value>, Vec<String>) {
    let documents = || manifests.iter().flat_map(|one| &one.documents);
    let described: Vec<Value> = documents()
        .map(|document| &document.value)
        .filter(|value| is_core(value, "Namespace"))
        .cloned()
        .collect();
    let named = |value: &Value| {
        let name = value.pointer("/metadata/name").and_then(Value::as_str);
        name.map(str::to_owned)
    };
    let known: BTreeSet<String> = rules
        .iter()
        .filter(|value| is_core(value, "Namespace"))
        .chain(&described)
        .filter_map(named)
        .collect();
    let mentioned: BTreeSet<String> = documents()
        .map(|document| document.text("/metadata/namespace").unwrap_or(default))
        .filter(|name| !known.contains(*name))
        .map(str::to_owned)
        .collect();
    let assumed = mentioned.iter().map(|name| {
        format!("namespace {name} is not among the rules: it is taken to have no annotations")
    });
    let assumed = assumed.collect();
    let made = mentioned.iter().map(|name| {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        })
    });
    let all = described.into_iter().chain(made).collect();
    (all, assumed)
}
