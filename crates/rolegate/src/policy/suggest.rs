//! `rolegate policy suggest`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rolegate_inventory::load::Loaded;
use rolegate_inventory::objects::Objects;
use rolegate_policy::suggest::{Users, suggest};

use super::current::Current;
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, ScopeFlags};
use crate::output::{self, ObjectOutputFlags};

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Write minimal grants that cover the running pods.\n\n\
Writes exactly the roles and external IDs that the pods of each service account use, \
unless grants cover them already. Roles of web identity are included (AWS_ROLE_ARN of containers, \
eks.amazonaws.com/role-arn of service accounts), since the webhook validates them. After applying the grants, you can enforce layer grants \
(spec.layers.grants of the RolegateConfig) without denying any running pod. Jobs that are not running are included \
only with --include-finished, and only if their pods still exist.";

/// Arguments of `rolegate policy suggest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy suggest > grants.yaml
  rolegate policy simulate --rules grants.yaml
  kubectl get namespaces,pods,serviceaccounts -A -o yaml | rolegate policy suggest -f -

Exit codes: 0 written, or no grant is missing, 1 failed, 64 invalid usage.")]
pub(super) struct SuggestArguments {
    /// Manifest or directory with rules and pods to use instead of the cluster. May be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Include finished pods
    #[arg(long)]
    include_finished: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    output: ObjectOutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: SuggestArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(&arguments.filename)?;
    let mut current = Current::read(&arguments.read, &arguments.filename, &Objects::default())
        .await?
        .guessing();
    current
        .add_users(false, arguments.scope.namespace.as_deref())
        .await?;
    let loaded = current.load()?;
    refuse_idle(&[&loaded.idle])?;
    let now = Timestamp::now();
    let suggested = |loaded: &Loaded| {
        suggest(
            &loaded.snapshot.rules,
            &loaded.snapshot.grants,
            Users {
                pods: &loaded.workloads,
                web_identity: &loaded.web_identity,
            },
            arguments.include_finished,
            now,
        )
    };
    let suggestion = suggested(&loaded);
    current.require_base(&loaded, &suggestion, |loaded| Ok(suggested(loaded)))?;
    for note in loaded.notes.iter().chain(&suggestion.notes()) {
        output::note(note);
    }
    output::note_rules(&loaded.basis);
    let yaml = loaded.basis.comments() + &suggestion.yaml()?;
    output::objects(arguments.output.output, &suggestion.json(), &yaml)?;
    Ok(ExitCode::SUCCESS)
}
