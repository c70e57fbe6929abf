//! `rolegate policy check`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use rolegate_core::config::Modes;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_policy::basis::Basis;
use rolegate_policy::case_report::{junit, tap};
use rolegate_policy::check::{
    Creator, Existing, Level, Manifest, Operation, Report, check, is_review, namespace_of,
};
use rolegate_policy::overlay::is_core;
use rolegate_policy::text::plain;
use serde_json::{Value, json};

use super::cluster::{is_config, is_ours};
use super::files::{Manifests, Selection};
use super::flags::{ReadFlags, RulesFrom, name};
use super::ignore::{Ignore, Pattern, pattern};
use super::in_force::{FlagSources, refuse_idle};
use super::load::{Assumed, Current, Loaded, Objects, UnusableRule};
use super::names::{Names, RuleKind};
use super::{REFUSED, files};
use crate::flags::invalid;
use crate::output::{self, Format, ReportFormat, Shown};

/// The operation on the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Create them, or update those that --old contains
    Create,
    /// Update them. --old must contain them
    Update,
    /// Delete them
    Delete,
}

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Validate manifests as the webhook would.\n\n\
Reads streams of YAML, JSON, lists, Helm output, and AdmissionReviews, which are validated as they are. \
The rules are those of the cluster, overlaid with the objects of --rules. Namespaces among the manifests apply \
as written. Other rules among them do not apply, so that manifests cannot grant their own \
requests. The objects are validated for an ordinary user. --user and --group, or --as, select another one.\n\n\
Objects that are not validated, and settings without effect, cause a warning.";

/// Arguments of `rolegate policy check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy check -f deploy/ --rules platform/rules/
  rolegate policy check -f deploy/ --rules policies/images.rego --ignore 'values*.yaml'
  helm template shop ./chart | rolegate policy check --rules rules/ -f -
  rolegate policy check -f new.yaml --old now.yaml --rules rules/
  rolegate policy check -f app.yaml -o sarif > rolegate.sarif

Exit codes: 0 no denial, 1 failed, or nothing to validate, 3 a denial \
or an unusable rule, 64 wrong usage.")]
pub(super) struct CheckArguments {
    /// Manifest, directory (recursive) or - for standard input. May be repeated
    #[arg(
        short,
        long,
        value_name = "PATH",
        required_unless_present = "misplaced"
    )]
    filename: Vec<PathBuf>,
    #[arg(hide = true, value_name = "PATH")]
    misplaced: Vec<PathBuf>,
    /// File or directory to skip, in the syntax of .gitignore. May be repeated
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    ignore: Vec<Pattern>,
    #[command(flatten)]
    from: RulesFrom,
    /// Namespace of objects that do not name one [default: that of the kubeconfig's context, or default without a cluster]
    #[arg(short, long, value_name = "NAME", value_parser = name)]
    namespace: Option<String>,
    /// Operation on the objects
    #[arg(long, value_name = "OPERATION", default_value = "create")]
    operation: Action,
    /// Manifest or directory with the existing objects. Objects with the same name are updated, others are created. May be repeated
    #[arg(long, value_name = "PATH")]
    old: Vec<PathBuf>,
    /// User who applies the manifests [default: that of --as, or rolegate:check]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Group of that user. May be repeated [default: those of --as-group, or system:authenticated]
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Accept paths without objects, which are an error otherwise
    #[arg(long)]
    allow_empty: bool,
    /// Fail on warnings too
    #[arg(long)]
    fail_on_warning: bool,
    /// Print no notes and, as text, nothing without findings
    #[arg(short, long)]
    quiet: bool,
    /// Output format of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: ReportFormat,
    #[command(flatten)]
    read: ReadFlags,
}

impl CheckArguments {
    /// Returns the user who applies the manifests.
    fn creator(&self) -> Creator {
        let reading = &self.read.reading;
        let user = self.user.as_deref().or(reading.impersonated());
        let groups = match (&*self.group, reading.groups()) {
            ([], []) => &["system:authenticated".to_owned()],
            ([], groups) | (groups, _) => groups,
        };
        Creator {
            user: user.unwrap_or("rolegate:check").to_owned(),
            groups: groups.to_vec(),
        }
    }

    /// Rejects flags that contradict each other.
    fn validate(&self) -> anyhow::Result<()> {
        if let Some(path) = self.misplaced.first() {
            let path = path.display();
            return Err(invalid(format!("unexpected argument: use -f {path}")));
        }
        match (self.operation, self.old.is_empty()) {
            (Action::Update, true) => {
                let why = "--operation=update requires the existing objects: use --old";
                return Err(invalid(why));
            }
            (Action::Delete, false) => {
                let why = "--operation=delete does not take --old: it deletes the objects of -f";
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

/// Runs the command.
pub(super) async fn run(arguments: CheckArguments) -> anyhow::Result<ExitCode> {
    match checked(&arguments).await {
        Err(error) if error.is::<UnusableRule>() => {
            output::failure(&format!("unusable rule: {error}"));
            Ok(ExitCode::from(REFUSED))
        }
        other => other,
    }
}

async fn checked(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    arguments.validate()?;
    let ignore = Ignore::of(arguments.ignore.clone());
    let contents = files::read(
        &arguments.filename,
        Selection {
            ignore: ignore.as_ref(),
            requires_objects: true,
            allows_empty: arguments.allow_empty,
            ..Selection::default()
        },
    )?;
    let manifests = &contents.manifests;
    let old = files::objects(files::read(&arguments.old, Selection::default())?.manifests);
    let current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let Current {
        objects: rules,
        sources,
        ..
    } = &current;
    // An error in the rules is reported with its line.
    refuse_idle(&[&rules.load(sources)?.idle])?;
    let namespace = rules.namespace(arguments.namespace.as_deref());
    let (namespaces, assumed) = namespaces(rules.values(), manifests, &namespace);
    let rules = rules.overlaid(&Objects::of_values(namespaces), false);
    let loaded = rules.load(sources)?;
    let checking = Checking {
        arguments,
        manifests,
        existing: Existing::of(&old, &namespace),
        faults: unusable(&rules, sources, manifests, &namespace)?,
        namespace,
        now: Timestamp::now(),
    };
    let created = checking.created();
    if created > 0 && arguments.operation == Action::Update {
        anyhow::bail!(
            "--old lacks {created} of the objects of -f: without \
             --operation=update they are validated as created"
        );
    }
    let documents = manifests.iter().flat_map(|one| &one.documents);
    let judged = documents.map(|document| &document.value);
    let verdicts = |report: &Report| -> Vec<_> {
        let findings = report.findings.iter();
        findings
            .map(|one| (one.level, one.file.clone(), one.line, one.layer.clone()))
            .collect()
    };
    let mut report = checking.report(&loaded);
    loaded.demand_base(
        sources,
        rules.values().iter().chain(judged),
        &verdicts(&report),
        |base| {
            let loaded = rules.load_as(sources, &Assumed::base(base))?;
            Ok(verdicts(&checking.report(&loaded)))
        },
    )?;
    rename(&mut report, &loaded.names);
    report.notes = [&*contents.skipped, &*loaded.notes, &*assumed].concat();
    if created > 0 {
        let note = format!("{created} objects are not in --old: they are validated as created");
        report.notes.push(note);
    }
    let of_files = loaded.unusable.iter().filter(|one| one.is_in_files);
    report.unusable = of_files.map(|one| one.sentence.clone()).collect();
    write(arguments, &report, &loaded.basis)?;
    let fails = report.refused > 0
        || !report.unusable.is_empty()
        || (arguments.fail_on_warning && report.warnings > 0);
    Ok(if fails {
        ExitCode::from(REFUSED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Manifests to validate with any rules.
struct Checking<'a> {
    arguments: &'a CheckArguments,
    manifests: &'a [Manifests],
    existing: Existing<'a>,
    /// Errors in rules among the manifests, by file and line.
    faults: BTreeMap<(String, u64), String>,
    namespace: String,
    now: Timestamp,
}

impl Checking<'_> {
    /// Returns the number of objects that are created rather than updated from --old.
    fn created(&self) -> usize {
        if self.arguments.old.is_empty() {
            return 0;
        }
        let documents = self.manifests.iter().flat_map(|one| &one.documents);
        let values = documents.map(|document| &document.value);
        values
            .filter(|value| {
                !is_review(value) && self.existing.beside(value, &self.namespace).is_none()
            })
            .count()
    }

    fn report(&self, loaded: &Loaded) -> Report {
        let creator = self.arguments.creator();
        let all = self.manifests.iter().flat_map(|one| {
            one.documents.iter().map(|document| Manifest {
                file: &one.file,
                document,
                old: self.existing.beside(&document.value, &self.namespace),
                operation: match self.arguments.operation {
                    Action::Create | Action::Update => Operation::Create,
                    Action::Delete => Operation::Delete,
                },
                fault: self
                    .faults
                    .get(&(one.file.clone(), document.line()))
                    .map(String::as_str),
            })
        });
        check(&loaded.gate(), all, &creator, &self.namespace, self.now)
    }
}

/// Returns the errors in rules among the manifests, by file and line: grants and policies that
/// would be unusable if they were applied.
///
/// # Errors
/// Returns [`UnusableRule`] for a malformed object.
fn unusable(
    rules: &Objects,
    sources: &FlagSources,
    manifests: &[Manifests],
    namespace: &str,
) -> anyhow::Result<BTreeMap<(String, u64), String>> {
    let mut change = Objects::default();
    let mut places = Vec::new();
    for one in manifests {
        for document in &one.documents {
            let value = &document.value;
            let is_map = is_core(value, "ConfigMap");
            if !is_map && !is_ours(value, "RoleGrant") && !is_config(value) {
                continue;
            }
            let mut value = value.clone();
            if let (true, Some(metadata)) = (is_map, value.get_mut("metadata")) {
                let named = metadata.get("namespace").and_then(Value::as_str);
                if named.is_none_or(str::is_empty) {
                    metadata["namespace"] = namespace.into();
                }
            }
            let name = value.pointer("/metadata/name").and_then(Value::as_str);
            let name = name.unwrap_or_default();
            let named = match is_map {
                true => (
                    RuleKind::Policy,
                    format!("{}/{name}", namespace_of(&value, namespace)),
                ),
                false => (RuleKind::RoleGrant, name.to_owned()),
            };
            places.push((named, (one.file.clone(), document.line())));
            let line = document.line();
            change.push_of(value, Some(format!("{}:{line}", plain(&one.file))));
        }
    }
    if places.is_empty() {
        return Ok(BTreeMap::new());
    }
    let applied = rules.overlaid(&change, false);
    // As if their layer were enabled.
    let modes = Modes::default()
        .with(LayerId::Grants, Mode::Enforce)
        .with(LayerId::Rego, Mode::Enforce);
    let assumed = Assumed {
        modes: Some(modes),
        ..Assumed::default()
    };
    let loaded = applied.load_as(sources, &assumed)?;
    let faults = loaded.unusable.into_iter().filter_map(|one| {
        let named = (one.kind, one.name);
        let (_, place) = places.iter().find(|(known, _)| *known == named)?;
        Some((place.clone(), one.sentence))
    });
    Ok(faults.collect())
}

impl Shown for Report {
    fn text(&self, _is_wide: bool) -> String {
        Self::text(self)
    }

    /// Returns the names of denied objects.
    fn names(&self) -> Vec<String> {
        let refused = self.findings.iter().filter(|one| one.level == Level::Error);
        let names = refused.map(|one| format!("{}/{}", one.kind.to_lowercase(), one.name));
        let mut names: Vec<_> = names.collect();
        names.dedup();
        names
    }
}

/// Replaces the names of policies from files with the files' paths.
fn rename(report: &mut Report, names: &Names) {
    let of_policies = report.findings.iter_mut();
    for finding in of_policies.filter(|finding| finding.layer == LayerId::Rego.as_str()) {
        finding.rule = names.shown(&finding.rule).to_owned();
        finding.message = names.in_sentence(&finding.message);
    }
}

fn write(arguments: &CheckArguments, report: &Report, rules: &Basis) -> anyhow::Result<()> {
    let has_room = match arguments.output {
        ReportFormat::Data(format) => format != Format::Name,
        _ => false,
    };
    if !arguments.quiet {
        for note in &report.notes {
            output::note(note);
        }
        if !has_room {
            output::note_rules(rules);
        }
    }
    for unusable in &report.unusable {
        output::failure(unusable);
    }
    let is_dull = |report: &Report| report.findings.iter().all(|one| one.level == Level::Note);
    match arguments.output {
        ReportFormat::Data(Format::Text | Format::Wide) if arguments.quiet && is_dull(report) => {
            Ok(())
        }
        ReportFormat::Data(format) => output::answer(format, report, rules),
        ReportFormat::Sarif => output::json(&report.sarif()),
        ReportFormat::Github => output::raw(&report.github()),
        ReportFormat::Junit => {
            let suites = report.suites(arguments.fail_on_warning);
            output::raw(&junit("rolegate policy check", &suites))
        }
        ReportFormat::Tap => output::raw(&tap(&report.suites(arguments.fail_on_warning))),
    }
}

/// Returns the namespaces of the manifests, and those that objects are in but nothing describes.
/// The latter have no annotations, as with `helm install --create-namespace`.
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
        format!("the rules do not contain namespace {name}: assuming that it has no annotations")
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
