//! `rolegate policy check`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use rolegate_policy::case_report::{junit, tap};
use rolegate_policy::check::{
    Creator, Existing, Level, Manifest, Operation, Report, check, is_review, namespace_of,
};
use rolegate_policy::overlay::is_core;
use serde_json::{Value, json};

use super::files::{self, Manifests, Selection};
use super::flags::{ReadFlags, RulesFrom, name};
use super::ignore::{Ignore, Pattern, pattern};
use super::load::Objects;
use super::names::Names;
use super::{REFUSED, output};
use crate::flags::invalid;

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
    /// JUnit's XML, for CI systems
    Junit,
    /// TAP version 13
    Tap,
}

/// The operation on the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// They are created, or updated where --old has them
    Create,
    /// They are updated: --old must have them
    Update,
    /// They are deleted
    Delete,
}

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Judge manifests as the webhook would judge what is done with them.\n\n\
Takes streams of YAML, JSON, lists, what Helm prints, and AdmissionReviews, which are judged as they are. \
Rules are those of the cluster, or of files with --rules. Namespaces among the checked manifests count \
as they are written there; other rules among them don't, so that nobody allows himself what he asks \
for. The objects are judged for an ordinary user unless --as and --as-group name who applies them.\n\n\
What is not judged, or counts for nothing where it stands, is a warning.";

/// Arguments of `rolegate policy check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy check -f deploy/ --rules platform/rules/
  rolegate policy check -f deploy/ --rules policies/images.rego --ignore 'values*.yaml'
  helm template shop ./chart | rolegate policy check --rules rules/ -f -
  rolegate policy check -f new.yaml --old now.yaml --rules rules/
  rolegate policy check -f app.yaml -o sarif > rolegate.sarif

Exit codes: 0 nothing would be refused, 1 failed, or there is nothing to judge, 3 something would be \
refused, 64 wrong usage.")]
pub(super) struct CheckArguments {
    /// Manifest, folder (with all below it) or - for standard input; may be repeated
    #[arg(
        short,
        long,
        value_name = "PATH",
        required_unless_present = "misplaced"
    )]
    filename: Vec<PathBuf>,
    #[arg(hide = true, value_name = "PATH")]
    misplaced: Vec<PathBuf>,
    /// File or folder that is passed over, as .gitignore writes it; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    ignore: Vec<Pattern>,
    #[command(flatten)]
    from: RulesFrom,
    /// Namespace of objects that name none; by default that of the kubeconfig's context, and default with --rules
    #[arg(short, long, value_name = "NAME", value_parser = name)]
    namespace: Option<String>,
    /// What is done with the objects
    #[arg(long, value_name = "OPERATION", default_value = "create")]
    operation: Action,
    /// Manifest or folder with the objects as they are: those of the same name are updated, and others created; may be repeated
    #[arg(long, value_name = "PATH")]
    old: Vec<PathBuf>,
    /// User who applies the manifests
    #[arg(
        long = "as",
        visible_alias = "user",
        value_name = "USER",
        default_value = "rolegate:check"
    )]
    user: String,
    /// Group of that user; may be repeated
    #[arg(
        long = "as-group",
        visible_alias = "group",
        value_name = "GROUP",
        default_value = "system:authenticated"
    )]
    group: Vec<String>,
    /// Fail on warnings too
    #[arg(long)]
    fail_on_warning: bool,
    /// Write no notes, and as text nothing where nothing is found
    #[arg(short, long)]
    quiet: bool,
    /// How the report is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: ReportFormat,
    #[command(flatten)]
    read: ReadFlags,
}

impl CheckArguments {
    /// Refuses flags that make no sense together.
    fn validate(&self) -> anyhow::Result<()> {
        if let Some(path) = self.misplaced.first() {
            let path = path.display();
            return Err(invalid(format!(
                "manifests are named by -f: write -f {path}"
            )));
        }
        match (self.operation, self.old.is_empty()) {
            (Action::Update, true) => {
                let why = "--operation=update needs the objects as they are: name them by --old";
                return Err(invalid(why));
            }
            (Action::Delete, false) => {
                let why = "--operation=delete needs no --old: the objects of -f are deleted";
                return Err(invalid(why));
            }
            _ => {}
        }
        let paths = self
            .filename
            .iter()
            .chain(&self.from.rules)
            .chain(&self.old);
        files::validate(paths)
    }
}

/// Checks.
pub(super) async fn run(arguments: CheckArguments) -> anyhow::Result<ExitCode> {
    let reading = arguments.read.reading()?;
    arguments.validate()?;
    let ignore = Ignore::of(arguments.ignore.clone());
    let contents = files::read(
        &arguments.filename,
        Selection {
            ignore: ignore.as_ref(),
            demands_objects: true,
            ..Selection::default()
        },
    )?;
    let manifests = &contents.manifests;
    let old = files::objects(files::read(&arguments.old, Selection::default())?.manifests);
    let client = arguments.read.client();
    let rules = Objects::from(&arguments.from.rules, &client, &reading).await?;
    // A mistake in the rules is told with its line.
    rules.load(&reading)?;
    let namespace = rules.namespace(arguments.namespace.as_deref());
    let (namespaces, assumed) = namespaces(rules.values(), manifests, &namespace);
    let namespaces = Objects::of_values(namespaces);
    let loaded = rules.overlaid(&namespaces, false).load(&reading)?;
    let existing = Existing::of(&old, &namespace);
    let creator = Creator {
        user: arguments.user.clone(),
        groups: arguments.group.clone(),
    };
    let documents = || manifests.iter().flat_map(|one| &one.documents);
    let created = documents()
        .map(|document| &document.value)
        .filter(|value| !is_review(value) && existing.beside(value, &namespace).is_none());
    let created = match arguments.old.is_empty() {
        true => 0,
        false => created.count(),
    };
    if created > 0 && arguments.operation == Action::Update {
        anyhow::bail!(
            "--old has not all objects of -f, {created} of them are missing: without \
             --operation=update they are judged as created"
        );
    }
    let all = manifests.iter().flat_map(|one| {
        one.documents.iter().map(|document| Manifest {
            file: &one.file,
            document,
            old: existing.beside(&document.value, &namespace),
            operation: match arguments.operation {
                Action::Create | Action::Update => Operation::Create,
                Action::Delete => Operation::Delete,
            },
        })
    });
    let gate = loaded.gate(&reading);
    let mut report = check(&gate, all, &creator, &namespace, Timestamp::now());
    rename(&mut report, &loaded.names);
    report.notes = [&*contents.passed_over, &*loaded.notes, &*assumed].concat();
    if created > 0 {
        let note = format!("{created} objects are not among --old: they are judged as created");
        report.notes.push(note);
    }
    write(&arguments, &report)?;
    let fails = report.refused > 0 || (arguments.fail_on_warning && report.warnings > 0);
    Ok(if fails {
        ExitCode::from(REFUSED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Names policies of files by their files.
fn rename(report: &mut Report, names: &Names) {
    let of_policies = report.findings.iter_mut();
    for finding in of_policies.filter(|finding| finding.layer == "rego") {
        finding.rule = names.shown(&finding.rule).to_owned();
        finding.message = names.in_sentence(&finding.message);
    }
}

fn write(arguments: &CheckArguments, report: &Report) -> anyhow::Result<()> {
    if !arguments.quiet {
        for note in &report.notes {
            output::note(note);
        }
    }
    let is_dull = |report: &Report| report.findings.iter().all(|one| one.level == Level::Note);
    match arguments.output {
        ReportFormat::Text if arguments.quiet && is_dull(report) => Ok(()),
        ReportFormat::Text => output::text(&report.text()),
        ReportFormat::Json => output::json(&serde_json::to_value(report)?),
        ReportFormat::Sarif => output::json(&report.sarif()),
        ReportFormat::Github => output::raw(&report.github()),
        ReportFormat::Junit => {
            let suites = report.suites(arguments.fail_on_warning);
            output::raw(&junit("rolegate policy check", &suites))
        }
        ReportFormat::Tap => output::raw(&tap(&report.suites(arguments.fail_on_warning))),
    }
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
        .map(|document| &document.value)
        .filter(|value| !is_core(value, "Namespace"))
        .map(|value| namespace_of(value, default))
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
