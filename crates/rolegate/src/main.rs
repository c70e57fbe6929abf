//! `rolegate` gives Kubernetes pods least-privilege AWS roles.
//!
//! Each command has one file: flags → options → run. The crates below hold the implementation.

// Parts that several tools share stay in the program of nodes, where link-time optimization drops them.
#![cfg_attr(not(feature = "tools"), allow(dead_code))]

mod admission;
mod advice;
mod agent;
mod broker;
mod cli;
#[cfg(feature = "tools")]
mod completion;
mod config_file;
mod controller;
#[cfg(feature = "tools")]
mod demo;
#[cfg(feature = "tools")]
mod doctor;
mod eks_agent;
mod environment;
mod flags;
mod ledger;
mod lifecycle;
#[cfg(feature = "tools")]
mod migrate;
mod options;
mod output;
mod pod_identity_webhook;
#[cfg(feature = "tools")]
mod policy;
mod progress;
mod redirect;
#[cfg(feature = "tools")]
mod reference;
mod run;
mod sources;
#[cfg(feature = "tools")]
mod tools;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};

/// Counts the memory of policies' evaluations, which are limited.
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();

/// Exit code for invalid usage: flags, configuration file or environment (`EX_USAGE`).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match eks_agent::run(std::env::args_os().collect()) {
        eks_agent::Outcome::Continue(arguments) => cli::with_implied_command(arguments),
        eks_agent::Outcome::Done(ended) => {
            return ended.unwrap_or_else(|error| failed(&error, false, ""));
        }
    };
    let format = environment::variable("ROLEGATE_LOG_FORMAT");
    let json = lifecycle::asks_for_json(&arguments, format.as_deref());
    let (command, json, help) = match command(arguments) {
        // The file of `--config` may set it too.
        Ok((command, arguments)) => {
            let json = lifecycle::asks_for_json(&arguments, format.as_deref());
            (command, json, cli::help_of(&arguments))
        }
        Err(error) if error.use_stderr() => {
            if json {
                lifecycle::report_fatal(error.to_string().trim_end(), json);
            } else {
                // Ignored: no other output is available without a terminal.
                let _ = error.print();
            }
            return ExitCode::from(USAGE);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if command.holds_secrets()
        && let Err(error) = rolegate_runtime::process::hide_memory()
    {
        let text = format!("cannot exclude this process's memory from core dumps: {error}");
        lifecycle::report_fatal(&text, json);
        return ExitCode::FAILURE;
    }
    rolegate_runtime::process::raise_open_files();
    let ended = match command {
        Command::Agent(flags) => run::run(*flags),
        Command::Admission(flags) => run::run(*flags),
        Command::PodIdentityWebhook(flags) => run::run(*flags),
        Command::Broker(flags) => run::run(*flags),
        Command::Ledger(arguments) => ledger::run(&arguments),
        Command::Controller(flags) => run::run(*flags),
        Command::Redirect(arguments) => redirect::run(arguments),
        #[cfg(feature = "tools")]
        Command::Tool(tool) => tool.run(cli::definition),
        Command::Version(arguments) => output::version(arguments.output),
        Command::Options => options::run(),
    };
    ended.unwrap_or_else(|error| failed(&error, json, &help))
}

/// Reports the error that ends a command.
fn failed(error: &anyhow::Error, json: bool, help: &str) -> ExitCode {
    if error.is::<output::Closed>() {
        return ExitCode::SUCCESS;
    }
    let cause: &(dyn std::error::Error + 'static) = error.as_ref();
    let mut text = rolegate_kube::chain(cause);
    if !error.is::<flags::Invalid>() {
        lifecycle::report_fatal(&text, json);
        return ExitCode::FAILURE;
    }
    if !json {
        text += &format!("\n\nFor more information, try '{help}'.");
    }
    lifecycle::report_fatal(&text, json);
    ExitCode::from(USAGE)
}

/// Parses the command, and its arguments with those from other sources.
fn command(arguments: Vec<OsString>) -> Result<(Command, Vec<OsString>), clap::Error> {
    let definition =
        options::with_short_help(cli::definition()).bin_name(cli::program_name(arguments.first()));
    let mut definition = environment::without_service_links(definition);
    if let Err(why) = flags::kubernetes::refuse_token_argument(&arguments) {
        return Err(definition.error(ErrorKind::InvalidValue, why));
    }
    let variables = std::env::vars_os().map(|(name, value)| {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        (text(name), text(value))
    });
    let arguments =
        config_file::with_lower_places(&mut definition, arguments, &environment::variable)?;
    let matches = definition
        .clone()
        .try_get_matches_from(&arguments)
        .map_err(|error| advice::advised(&definition, &arguments, error))?;
    environment::check(&mut definition, &arguments, variables)?;
    Ok((Cli::from_arg_matches(&matches)?.command, arguments))
}
