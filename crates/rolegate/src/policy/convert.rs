//! `rolegate policy convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rolegate_inventory::in_force::Agents;
use rolegate_inventory::objects::Objects;
use rolegate_policy::convert::{Conversion, convert};

use super::current::Current;
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, ScopeFlags};
use crate::output::{self, ObjectOutputFlags};

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Convert the namespace annotations of kube2iam (allowed-roles) and kiam (permitted) \
into grants.\n\n\
A grant never allows more than the annotations did. Regular expressions become grants if they consist of \
plain text, alternatives and `.*`. Others are omitted and listed in a comment and on \
standard error. External IDs, which annotations do not contain, are taken from pods.";

/// Arguments of `rolegate policy convert`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy convert > grants.yaml
  rolegate policy convert -f namespaces.yaml --base-role-arn arn:aws:iam::123456789012:role/

Exit codes: 0 written, even if comments list annotations that could not be converted, 1 failed, 64 invalid usage.")]
pub(super) struct ConvertArguments {
    /// Manifest or directory with namespaces and pods to use instead of the cluster. May be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    output: ObjectOutputFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: ConvertArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(&arguments.filename)?;
    let mut current = Current::read(&arguments.read, &arguments.filename, &Objects::default())
        .await?
        .guessing();
    if matches!(current.sources.agents, Some(Agents::Unknown(_))) {
        // The output does not depend on enabled layers, since the cluster may still run kube2iam.
        current.sources.agents = None;
    }
    current
        .add_users(false, arguments.scope.namespace.as_deref())
        .await?;
    let loaded = current.load()?;
    refuse_idle(&[&loaded.idle])?;
    for note in &loaded.notes {
        output::note(note);
    }
    let taken: Vec<_> = loaded.grants.iter().map(|grant| &*grant.name).collect();
    let mut namespaces = loaded.namespaces.clone();
    if let Some(only) = &arguments.scope.namespace {
        namespaces.retain(|one| *one.name == **only);
    }
    let converted = convert(&Conversion {
        namespaces: &namespaces,
        workloads: &loaded.workloads,
        base: loaded.snapshot.rules.base.as_ref(),
        format: loaded.snapshot.config.restriction_format,
        allow_unannotated: loaded.snapshot.config.allow_unannotated,
        taken: &taken,
    });
    for note in converted.notes() {
        output::note(&note);
    }
    output::note_rules(&loaded.basis);
    let yaml = loaded.basis.comments() + &converted.yaml()?;
    output::objects(arguments.output.output, &converted.json(), &yaml)?;
    Ok(ExitCode::SUCCESS)
}
