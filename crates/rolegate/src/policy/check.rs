//! `rolegate policy check`.

mod checking;
mod namespaces;
mod output;
mod unusable;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use rolegate_inventory::files::{Selection, objects};
use rolegate_inventory::ignore::{Ignore, Pattern};
use rolegate_inventory::load::{Assumed, LoadError};
use rolegate_inventory::objects::Objects;
use rolegate_policy::check::{Creator, Existing, Report};
use rolegate_report::EXIT_FINDINGS;
use rolegate_report::findings::Findings;

use super::current::{Current, load, require_base};
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, RulesFrom};
use crate::flags::{invalid, name};
use crate::output::{ReportFormat, failure};

use checking::Checking;
use namespaces::namespaces;
use output::{rename, write};
use unusable::unusable;

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
requests. The objects are validated as if an ordinary user applied them. --user and --group, or --as, select another user.\n\n\
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
or an unusable rule, 64 invalid usage.")]
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
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
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
        Err(error) if is_unusable_rule(&error) => {
            failure(&format!("unusable rule: {error}"));
            Ok(ExitCode::from(EXIT_FINDINGS))
        }
        other => other,
    }
}

fn is_unusable_rule(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<LoadError>();
    matches!(error, Some(LoadError::UnusableRule(_)))
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
    let old = objects(files::read(&arguments.old, Selection::default())?.manifests);
    let current = Current::laid_over(&arguments.read, &arguments.from).await?;
    let Current {
        objects: rules,
        sources,
        ..
    } = &current;
    // An error in the rules is reported with its line.
    refuse_idle(&[&current.load()?.idle])?;
    let namespace = rules.namespace(arguments.namespace.as_deref());
    let (namespaces, assumed) = namespaces(rules.values(), manifests, &namespace);
    let rules = rules.overlaid(&Objects::of_values(namespaces), false);
    let loaded = load(&rules, sources, &Assumed::default())?;
    let checking = Checking {
        arguments,
        manifests,
        existing: Existing::of(&old, &namespace),
        faults: unusable(&rules, sources, manifests, &namespace)?,
        namespace,
        now: Timestamp::now(),
    };
    let created = checking.created()?;
    let documents = manifests.iter().flat_map(|one| &one.documents);
    let judged = documents.map(|document| &document.value);
    let verdicts = |report: &Findings| -> Vec<_> {
        let findings = report.findings.iter();
        findings
            .map(|one| (one.level, one.location.clone(), one.category.clone()))
            .collect()
    };
    let mut findings = checking.report(&loaded);
    require_base(
        &loaded,
        sources,
        rules.values().iter().chain(judged),
        &verdicts(&findings),
        |base| {
            let loaded = load(&rules, sources, &Assumed::base(base))?;
            Ok(verdicts(&checking.report(&loaded)))
        },
    )?;
    rename(&mut findings, &loaded.names);
    findings.fails_on_warning = arguments.fail_on_warning;
    let mut notes = [&*contents.skipped, &*loaded.notes, &*assumed].concat();
    if created > 0 {
        notes.push(format!(
            "{created} objects are not in --old: they are validated as created"
        ));
    }
    let of_files = loaded.unusable.iter().filter(|one| one.is_in_files);
    let report = Report {
        findings,
        unusable: of_files.map(|one| one.sentence.clone()).collect(),
        notes,
    };
    write(arguments, &report, &loaded.basis)?;
    Ok(if report.has_failed() {
        ExitCode::from(EXIT_FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}
