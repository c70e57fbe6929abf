//! `rolegate options`: the flags that several commands share, as `kubectl options` shows them. The help
//! of a command names its own flags, and points there for the others.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Command};

use crate::annotation_flags::AnnotationFlags;
use crate::kubernetes_flags::ReadingFlags;
use crate::log_flags::LogFlags;
use crate::{output, policy};

/// The line at the end of a help that leaves shared flags out.
const POINTER: &str = "Use \"rolegate options\" for flags that several commands share.";

const ABOUT: &str = "\
Flags that several commands share, where a command has them: those under Kubernetes (agent, broker, \
admission, controller and policy; --as, --as-group, --request-timeout and -v are of policy alone), under \
Process (agent, broker, admission and controller), and all others (policy). Environment variables stand \
beside them.";

/// Flags of processes and of policy commands.
#[derive(Debug, Args)]
struct SharedFlags {
    #[command(flatten)]
    _reading: ReadingFlags,
    #[command(flatten)]
    _annotations: AnnotationFlags,
    #[command(flatten)]
    _log: LogFlags,
}

/// Prints the shared flags.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let command = policy::SharedFlags::augment_args(Command::new("options"));
    // Annotations' keys are among those of policy commands already.
    let command = LogFlags::augment_args(ReadingFlags::augment_args(command));
    let mut command = command
        .disable_help_flag(true)
        .max_term_width(100)
        .help_template("{before-help}{all-args}\n")
        .before_help(ABOUT);
    output::text(&command.render_help().ansi().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The definition with shared flags left out of the help of commands.
pub(crate) fn with_short_help(definition: Command) -> Command {
    let processes = ids(SharedFlags::augment_args(Command::new("")));
    let mut all = ids(policy::SharedFlags::augment_args(Command::new("")));
    all.extend(processes.iter().cloned());
    definition
        .mut_subcommands(|command| shortened(command, &processes))
        .mut_subcommand("policy", |policy| {
            policy.mut_subcommands(|command| shortened(command, &all))
        })
}

/// The flags by field and heading: another command may have one of the same name.
type Ids = BTreeSet<(String, Option<String>)>;

fn id(flag: &clap::Arg) -> (String, Option<String>) {
    let heading = flag.get_help_heading().map(str::to_owned);
    (flag.get_id().as_str().to_owned(), heading)
}

fn ids(command: Command) -> Ids {
    command.get_arguments().map(id).collect()
}

fn shortened(command: Command, shared: &Ids) -> Command {
    let is_shared = |flag: &clap::Arg| shared.contains(&id(flag));
    if !command.get_arguments().any(is_shared) {
        return command;
    }
    let after = command.get_after_help().map(ToString::to_string);
    let after = after.map_or_else(|| POINTER.to_owned(), |text| format!("{text}\n\n{POINTER}"));
    command
        .mut_args(|flag| match is_shared(&flag) {
            true => flag.hide(true),
            false => flag,
        })
        .after_help(after)
}
