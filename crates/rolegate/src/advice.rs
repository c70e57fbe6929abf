//! Advice in addition to clap's errors: the command that a word or a flag belongs to.

use std::ffi::{OsStr, OsString};

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Minimum similarity (Jaro, 0 to 1) of a suggested name of another command. It is higher than
/// clap's for names of the same command, since there are many candidates.
const SIMILAR: f64 = 0.85;

/// Adds suggestions to the error.
pub(crate) fn advised(definition: &Command, arguments: &[OsString], mut error: Error) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let tips = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            text(ContextKind::InvalidSubcommand).map(|word| commands(definition, &word))
        }
        ErrorKind::UnknownArgument if begins_with_flag(arguments) => {
            text(ContextKind::InvalidArg).map(|flag| flags(definition, &flag))
        }
        _ => None,
    };
    let tips: Vec<StyledStr> = tips.into_iter().flatten().map(StyledStr::from).collect();
    if !tips.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// Returns whether the first argument is a flag, without a command before it.
pub(crate) fn begins_with_flag(arguments: &[OsString]) -> bool {
    let first = arguments.get(1).map(OsString::as_os_str);
    first.is_some_and(|first| first.as_encoded_bytes().starts_with(b"-"))
}

/// Returns whether a command has a flag, which may be followed by `=` and a value.
pub(crate) fn has_flag(command: &Command, argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    let Some(name) = text.strip_prefix("--") else {
        return false;
    };
    let name = name.split('=').next().unwrap_or_default();
    command.get_arguments().any(|flag| {
        let aliases = flag.get_all_aliases().unwrap_or_default();
        flag.get_long() == Some(name) || aliases.contains(&name)
    })
}

/// Returns the commands, at any level, with this name, or else with a similar one.
fn commands(definition: &Command, word: &str) -> Vec<String> {
    let mut paths = Vec::new();
    each(definition, "", &mut |path, command| {
        let score = strsim::jaro(word, command.get_name());
        paths.push((score, path.to_owned()));
    });
    let best = paths.iter().map(|(score, _)| *score).fold(0.0, f64::max);
    let alike = paths
        .into_iter()
        .filter(|(score, _)| *score >= SIMILAR && *score >= best);
    alike
        .map(|(_, path)| format!("did you mean `rolegate {path}`?"))
        .collect()
}

/// Returns the commands with such a flag, and the most similar flag of the agent.
fn flags(definition: &Command, flag: &str) -> Vec<String> {
    let mut owners = Vec::new();
    each(definition, "", &mut |path, command| {
        if has_flag(command, OsStr::new(flag)) {
            owners.push(format!("`rolegate {path}` has this flag"));
        }
    });
    if !owners.is_empty() {
        return owners;
    }
    let agent = definition.find_subcommand("agent");
    let flags = agent.into_iter().flat_map(Command::get_arguments);
    let scored = flags.filter_map(|known| {
        let known = known.get_long()?;
        Some((strsim::jaro(flag.trim_start_matches('-'), known), known))
    });
    let similar = scored
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut tips = vec!["flags without a command belong to `rolegate agent`".to_owned()];
    if let Some((_, similar)) = similar {
        tips.insert(
            0,
            format!("`rolegate agent` has the similar flag '--{similar}'"),
        );
    }
    tips
}

fn each(command: &Command, path: &str, visit: &mut dyn FnMut(&str, &Command)) {
    for inner in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = inner.get_name();
        let path = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path} {name}")
        };
        visit(&path, inner);
        each(inner, &path, visit);
    }
}
