//! `rolegate policy suggest`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rolegate_policy::suggest::{Users, suggest};

use super::files;
use super::flags::ReadFlags;
use super::load::Objects;
use super::output::{self, ObjectFormat};

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
    /// How the grants are written
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    output: ObjectFormat,
    #[command(flatten)]
    read: ReadFlags,
}

/// Suggests.
pub(super) async fn run(arguments: SuggestArguments) -> anyhow::Result<ExitCode> {
    let reading = arguments.read.reading()?;
    files::validate(&arguments.filename)?;
    let client = arguments.read.client();
    let objects = Objects::from(&arguments.filename, &client, &reading).await?;
    let objects = objects.with_users(&client, false).await?;
    let loaded = objects.load(&reading)?;
    let suggestion = suggest(
        &loaded.snapshot.rules,
        &loaded.snapshot.grants,
        Users {
            pods: &loaded.workloads,
            web_identity: &loaded.web_identity,
        },
        arguments.include_finished,
        Timestamp::now(),
    );
    for note in loaded.notes.iter().chain(&suggestion.notes()) {
        output::note(note);
    }
    match arguments.output {
        ObjectFormat::Yaml => output::raw(&suggestion.yaml()?)?,
        ObjectFormat::Json => output::json(&suggestion.json())?,
    }
    Ok(ExitCode::SUCCESS)
}
