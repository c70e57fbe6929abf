//! `rolegate migrate`: translates the configuration of kube2iam, kiam and EKS.

mod associations;
mod values;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::run::block_on;

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Translate the configuration of kube2iam, kiam and EKS.\n\n\
These commands print, and never write to a cluster.";

/// Arguments of `rolegate migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Translate Helm values of kube2iam's and kiam's charts into values of rolegate's chart
    #[command(long_about = values::LONG_ABOUT)]
    Values(Box<values::ValuesArguments>),
    /// Import roles of service accounts from EKS Pod Identity and the EKS webhook
    #[command(long_about = associations::LONG_ABOUT)]
    Associations(associations::AssociationsArguments),
}

/// Runs one of the actions.
pub(crate) fn run(arguments: MigrateArguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        match arguments.action {
            Action::Values(arguments) => values::run(*arguments).await,
            Action::Associations(arguments) => associations::run(&arguments),
        }
    })
}
