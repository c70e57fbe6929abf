//! `rolegate options`: prints the flags that several commands share, as `kubectl options` does. The
//! help of a command lists its own flags and refers to this command for the others.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Command};

use crate::flags::annotations::AnnotationFlags;
use crate::flags::kubernetes::ReadingFlags;
use crate::flags::log::LogFlags;
use crate::output;
#[cfg(feature = "tools")]
use crate::policy;

/// The last line of a help text that omits shared flags.
const POINTER: &str = "Use \"rolegate options\" for a list of shared flags.";

const ABOUT: &str = "\
Flags that several commands share. Kubernetes: agent, broker, admission, controller, policy, doctor and \
migrate (--as, --as-group, --request-timeout and -v: policy, doctor and migrate only). Process: agent, broker, \
admission and controller. All others: policy and doctor. The environment variable of each flag is shown \
next to it.";

/// Flags that processes share with policy commands.
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
    let command = with_policy_flags(Command::new("options"));
    // The annotation keys are among the flags of policy commands already.
    let mut command = LogFlags::augment_args(ReadingFlags::augment_args(command))
        .disable_help_flag(true)
        .max_term_width(100)
        .help_template("{before-help}{all-args}\n")
        .before_help(ABOUT);
    output::text(&command.render_help().ansi().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the definition with shared flags hidden in the help of commands.
pub(crate) fn with_short_help(definition: Command) -> Command {
    let processes = ids(SharedFlags::augment_args(Command::new("")));
    let mut all = ids(with_policy_flags(Command::new("")));
    all.extend(processes.iter().cloned());
    // By name, since a program without tools has fewer commands.
    definition.mut_subcommands(|command| {
        match command.get_name() {
            // It decides like policy commands, and is not one of them.
            "doctor" => shortened(command, &all),
            "policy" => {
                shortened(command, &processes).mut_subcommands(|command| shortened(command, &all))
            }
            "migrate" => shortened(command, &processes)
                .mut_subcommands(|command| shortened(command, &processes)),
            _ => shortened(command, &processes),
        }
    })
}

/// Adds the flags that policy commands share, if this program has these commands.
fn with_policy_flags(command: Command) -> Command {
    #[cfg(feature = "tools")]
    let command = policy::SharedFlags::augment_args(command);
    command
}

/// Flags by field and heading, since another command may have a field of the same name.
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
    let after = command
        .get_after_help()
        .map(ToString::to_string)
        .map_or_else(|| POINTER.to_owned(), |text| format!("{text}\n\n{POINTER}"));
    command
        .mut_args(|flag| {
            if is_shared(&flag) {
                flag.hide(true)
            } else {
                flag
            }
        })
        .after_help(after)
}
