//! `rolegate completion`: prints a script with which a shell completes commands and flags.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of `rolegate completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  In the current shell:
    source <(rolegate completion bash)
  For all shells of a user:
    rolegate completion fish > ~/.config/fish/completions/rolegate.fish")]
pub(crate) struct CompletionArguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for the commands of `definition`.
pub(crate) fn run(
    arguments: &CompletionArguments,
    mut definition: Command,
) -> anyhow::Result<ExitCode> {
    // Into memory first, because the generator panics if its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut definition, "rolegate", &mut script);
    crate::output::raw(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
