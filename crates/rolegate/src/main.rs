//! `rolegate`: gives every Kubernetes pod exactly the AWS role it may have, and nothing else.
//!
//! One file a command: flags → options → run. What is run lives in the crates below.

mod admission;
mod agent;
mod annotation_flags;
mod broker;
mod certificate_flags;
mod cli;
mod config_file;
mod container_flags;
mod controller;
mod deciding_flags;
mod demo;
mod flags;
mod kiam_flags;
mod kubernetes_flags;
mod ledger;
mod log_flags;
mod policy;
mod redirect;
mod reference;
mod rule_flags;
mod sources;
mod sts_flags;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::cli::{Cli, Command};

/// Wrong usage: flags, configuration file or environment (`EX_USAGE`).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = cli::with_implied_command(std::env::args_os().collect());
    let command = match command(arguments) {
        Ok(command) => command,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // Nothing is left to do where even the terminal is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if command.holds_secrets()
        && let Err(error) = rolegate_runtime::process::hide_memory()
    {
        use std::io::Write;
        let text = "rolegate: this process's memory can't be kept out of dumps";
        let _ = writeln!(std::io::stderr(), "{text}: {error}");
        return ExitCode::FAILURE;
    }
    rolegate_runtime::process::raise_open_files();
    let ended = match command {
        Command::Agent(flags) => agent::run(*flags),
        Command::Admission(flags) => admission::run(*flags),
        Command::Broker(flags) => broker::run(*flags),
        Command::Ledger(arguments) => ledger::run(&arguments),
        Command::Controller(flags) => controller::run(*flags),
        Command::Redirect(arguments) => redirect::run(arguments),
        Command::Policy(arguments) => policy::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Reference(arguments) => reference::run(&arguments),
    };
    ended.unwrap_or_else(|error| {
        use std::io::Write;
        let code = if error.is::<flags::Invalid>() {
            USAGE
        } else {
            1
        };
        let _ = writeln!(std::io::stderr(), "rolegate: {error:#}");
        ExitCode::from(code)
    })
}

fn command(arguments: Vec<OsString>) -> Result<Command, clap::Error> {
    let mut definition = cli::definition();
    let environment = |name: &str| std::env::var(name).ok();
    let arguments = config_file::with_lower_places(&mut definition, arguments, &environment)?;
    let matches = definition.try_get_matches_from(arguments)?;
    Ok(Cli::from_arg_matches(&matches)?.command)
}
