//! `rolegate reference`: generates the reference of commands and flags from their definition.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, Args, Command};

/// Arguments of `rolegate reference`.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArguments {
    /// The command
    #[arg(value_name = "COMMAND", default_value = "agent")]
    command: String,
    /// Write manual pages of all commands into this folder, and print nothing
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    man: Option<PathBuf>,
}

/// Prints the reference of one command of `definition` as Markdown, or writes manual pages of all.
pub(crate) fn run(
    arguments: &ReferenceArguments,
    mut definition: Command,
) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &arguments.man {
        clap_mangen::generate_to(with_page_names(definition, None), folder)
            .with_context(|| format!("cannot write manual pages into {}", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    definition.build();
    let command = definition
        .find_subcommand(&arguments.command)
        .ok_or_else(|| {
            crate::flags::invalid(format!("there is no command {:?}", arguments.command))
        })?;
    crate::output::raw(&markdown(command, 1)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Gives each command the name of its manual page, such as `rolegate-policy-explain`.
fn with_page_names(command: Command, parent: Option<&str>) -> Command {
    let name = command.get_name();
    let name = parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}-{name}"));
    command
        .display_name(name.clone())
        .mut_subcommands(|inner| with_page_names(inner, Some(&name)))
}

fn markdown(command: &Command, level: usize) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let about = command.get_long_about().or(command.get_about());
    let name = command.get_bin_name().unwrap_or(command.get_name());
    writeln!(text, "{} {name}\n", "#".repeat(level))?;
    if level == 1 {
        writeln!(
            text,
            "Generated from the program by `rolegate reference`; do not edit.\n"
        )?;
    }
    if let Some(about) = about {
        writeln!(text, "{about}\n")?;
    }
    let mut headings: Vec<&str> = Vec::new();
    let flags = || {
        command
            .get_arguments()
            .filter(|flag| flag.get_long().is_some() && !flag.is_hide_set())
            .filter(|flag| !matches!(flag.get_id().as_str(), "help" | "version"))
    };
    for flag in flags() {
        let heading = flag.get_help_heading().unwrap_or("Flags");
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        writeln!(text, "{} {heading}\n", "#".repeat(level + 1))?;
        writeln!(
            text,
            "| flag | environment | default | meaning |\n| --- | --- | --- | --- |"
        )?;
        for flag in flags().filter(|flag| flag.get_help_heading().unwrap_or("Flags") == heading) {
            row(&mut text, flag)?;
        }
        text.push('\n');
    }
    for subcommand in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        text.push_str(&markdown(subcommand, level + 1)?);
    }
    Ok(text)
}

fn row(text: &mut String, flag: &Arg) -> std::fmt::Result {
    let value = flag
        .get_value_names()
        .and_then(<[_]>::first)
        .map(|name| format!("={name}"))
        .unwrap_or_default();
    let environment = flag
        .get_env()
        .map(|name| format!("`{}`", name.to_string_lossy()))
        .unwrap_or_default();
    let defaults: Vec<_> = flag
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<_> = flag
        .get_possible_values()
        .iter()
        .filter(|_| !flag.is_hide_possible_values_set())
        .map(|choice| format!("`{}`", choice.get_name()))
        .collect();
    let choices = if choices.is_empty() {
        String::new()
    } else {
        format!(" ({})", choices.join(", "))
    };
    writeln!(
        text,
        "| `--{}{value}` | {environment} | {} | {}{choices} |",
        flag.get_long().unwrap_or_default(),
        defaults.join(" "),
        help.replace('|', "\\|"),
    )
}
