//! `rolegate policy suggest`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rolegate_policy::suggest::{Users, suggest};

use super::files;
use super::flags::{ReadFlags, ScopeFlags};
use super::in_force::refuse_idle;
use super::load::{Current, Loaded, Objects};
use crate::output::{self, ObjectOutputFlags};

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Write the tightest grants that cover what runs today.\n\n\
For each service account that has pods with a role now, the roles and external IDs that they use, \
exactly, unless grants cover them already. Roles of web identity count too (AWS_ROLE_ARN of containers, \
eks.amazonaws.com/role-arn of service accounts), since the webhook judges them. With these applied, layer grants can be switched on \
(spec.layers.grants of the RolegateConfig) and nothing that runs is cut off. Jobs that don't run at the \
moment are seen with --include-finished only as far as their pods are still there.";

/// Arguments of `rolegate policy suggest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy suggest > grants.yaml
  rolegate policy simulate --rules grants.yaml
  kubectl get namespaces,pods,serviceaccounts -A -o yaml | rolegate policy suggest -f -")]
pub(super) struct SuggestArguments {
    /// Rules and pods from this manifest or folder instead of the cluster; may be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Count finished pods too
    #[arg(long)]
    include_finished: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    output: ObjectOutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Suggests.
pub(super) async fn run(arguments: SuggestArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(&arguments.filename)?;
    let current = Current::read(&arguments.read, &arguments.filename, &Objects::default()).await?;
    let mut current = current.guessing();
    current
        .add_users(false, arguments.scope.namespace.as_deref())
        .await?;
    let loaded = current.objects.load(&current.sources)?;
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
    current.demand_base(&loaded, &suggestion, |loaded| Ok(suggested(loaded)))?;
    for note in loaded.notes.iter().chain(&suggestion.notes()) {
        output::note(note);
    }
    output::note_rules(&loaded.basis);
    let yaml = loaded.basis.comments() + &suggestion.yaml()?;
    output::objects(arguments.output.output, &suggestion.json(), &yaml)?;
    Ok(ExitCode::SUCCESS)
}
