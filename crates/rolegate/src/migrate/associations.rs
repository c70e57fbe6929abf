//! `rolegate migrate associations`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rolegate_migrate::{NoteKind, ValuesFile, import_associations};
use rolegate_policy::document;
use rolegate_report::EXIT_FINDINGS;
use serde_json::json;

use super::values::{described, read};
use crate::output;
use crate::policy::files as manifests;

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Import roles of service accounts from EKS Pod Identity and the EKS webhook.\n\n\
Reads the output of `aws eks describe-pod-identity-association`, the ConfigMap pod-identity-webhook of the EKS webhook, \
or its file of container credentials, as JSON or YAML, and prints RoleGrants with associations. Standard error names \
what is not carried over, with the reason. Annotations eks.amazonaws.com/role-arn of service accounts need no import: \
rolegate reads them.\n\n\
The printed grants also grant the roles to the service accounts: review them before you apply them.";

/// Arguments of `rolegate migrate associations`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  aws eks list-pod-identity-associations --cluster-name prod --query 'associations[].associationId' --output text |
    xargs -n1 aws eks describe-pod-identity-association --cluster-name prod --association-id |
    rolegate migrate associations -f - > grants.yaml
  kubectl get configmap pod-identity-webhook -n kube-system -o yaml | rolegate migrate associations -f -

Exit codes: 0 everything carried over or not needed, 1 failed, 3 a value needs a decision, 64 invalid usage.")]
pub(super) struct AssociationsArguments {
    /// File to import, or - for standard input. May be repeated
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
}

/// Runs the command.
pub(super) fn run(arguments: &AssociationsArguments) -> anyhow::Result<ExitCode> {
    manifests::validate(arguments.filename.iter())?;
    let contents = read(&arguments.filename)?;
    let files: Vec<_> = contents
        .iter()
        .map(|(name, content)| ValuesFile { name, content })
        .collect();
    let imported = import_associations(&files).map_err(described)?;
    for note in &imported.notes {
        let kind = match note.kind {
            NoteKind::Action => "needs a decision: ",
            NoteKind::Changed | NoteKind::Dropped => "",
        };
        output::note(&format!("{kind}{}", note.line()));
    }
    for (place, grant) in imported.grants.iter().enumerate() {
        let separator = if place == 0 { "" } else { "---\n" };
        output::raw(&(separator.to_owned() + &document::yaml(&json!(grant))?))?;
    }
    Ok(if imported.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FINDINGS)
    })
}
