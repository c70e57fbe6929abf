//! Commands for people and for builds, which nothing in a cluster runs: the feature `tools`.

use std::process::ExitCode;

use clap::Subcommand;

use crate::completion::CompletionArguments;
use crate::demo::DemoArguments;
use crate::doctor::DoctorArguments;
use crate::migrate::MigrateArguments;
use crate::policy::PolicyArguments;
use crate::reference::ReferenceArguments;
use crate::{completion, demo, doctor, migrate, policy, reference};

/// The commands of the feature.
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Explain decisions, check manifests, simulate and suggest rules
    #[command(long_about = crate::policy::LONG_ABOUT)]
    Policy(PolicyArguments),
    /// Examine the installation, a pod or a node, and name what is wrong
    #[command(long_about = crate::doctor::LONG_ABOUT)]
    Doctor(Box<DoctorArguments>),
    /// Translate the configuration of kube2iam, kiam and EKS
    #[command(long_about = crate::migrate::LONG_ABOUT)]
    Migrate(MigrateArguments),
    /// Run the whole system on this machine, without AWS and without a cluster
    Demo(DemoArguments),
    /// Print the completion script of a shell
    Completion(CompletionArguments),
    /// Print the reference of commands and flags
    #[command(hide = true)]
    Reference(ReferenceArguments),
}

impl Tool {
    /// Returns whether the process has secrets in memory. The demo has only invented ones.
    pub(crate) fn holds_secrets(&self) -> bool {
        matches!(self, Self::Policy(_) | Self::Doctor(_) | Self::Migrate(_))
    }

    /// Runs the command. `definition` returns that of the whole command line.
    ///
    /// # Errors
    /// Returns an error if the command fails.
    pub(crate) fn run(self, definition: fn() -> clap::Command) -> anyhow::Result<ExitCode> {
        match self {
            Self::Policy(arguments) => policy::run(arguments),
            Self::Doctor(arguments) => doctor::run(*arguments),
            Self::Migrate(arguments) => migrate::run(arguments),
            Self::Demo(arguments) => demo::run(&arguments, definition()),
            Self::Completion(arguments) => completion::run(&arguments, definition()),
            Self::Reference(arguments) => reference::run(&arguments, definition()),
        }
    }
}
