//! `--config FILE`: flags from a YAML file. Its keys are the flags' names. Values from the command
//! line or the environment override the file's, or are added to them ([`crate::sources`]).

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command, Error};
use serde_json::Value;

use crate::sources::{self, Rule};

/// The flag that names the file.
const CONFIG: &str = "config";
/// Largest configuration file, bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// Looks up a variable of the environment.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The arguments with the values of lower places before them: those of the file, where they or the
/// environment name one, and of flags whose places are merged those of the environment.
/// A flag of the file is left out where the command line or the environment gives it, or gives
/// one that excludes it, unless its places are merged.
///
/// # Errors
/// Returns an error for an unreadable file, an unknown key, or sources that contradict each other.
pub(crate) fn with_lower_places(
    definition: &mut Command,
    mut arguments: Vec<OsString>,
    environment: Environment<'_>,
) -> Result<Vec<OsString>, Error> {
    let (command, place) = innermost(definition, &arguments);
    let rest = arguments.get(place..).unwrap_or_default();
    let path = flag(&command, CONFIG).and_then(|flag| value_of(flag, rest, environment));
    let file = path.as_deref().map_or(Ok(Vec::new()), |path| {
        read(path)
            .and_then(|values| of_file(&command, values))
            .map_err(|message| format!("--config {path}: {message}"))
    });
    let lower = file.and_then(|file| {
        let given: Vec<_> = command
            .get_arguments()
            .filter(|flag| value_of(flag, rest, environment).is_some())
            .collect();
        let mut lower = as_arguments(&command, &file, &given);
        lower.extend(sources::added(&command, rest, environment, &file)?);
        Ok(lower)
    });
    match lower {
        Ok(lower) => {
            arguments.splice(place..place, lower);
            Ok(arguments)
        }
        Err(message) => Err(definition.error(ErrorKind::InvalidValue, message)),
    }
}

/// The command that the arguments name, and the place of its own arguments.
pub(crate) fn innermost(definition: &Command, arguments: &[OsString]) -> (Command, usize) {
    let mut command = definition;
    let mut place = 1;
    while let Some(inner) = arguments
        .get(place)
        .and_then(|name| command.find_subcommand(name))
    {
        command = inner;
        place += 1;
    }
    (command.clone(), place)
}

fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut flags = command.get_arguments();
    flags.find(|flag| flag.get_long() == Some(name))
}

/// The values of the file, each of a flag.
fn of_file(
    command: &Command,
    values: BTreeMap<String, Value>,
) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut file = Vec::new();
    for (key, value) in values {
        if flag(command, &key).is_none() || key == CONFIG {
            let name = command.get_name();
            return Err(format!(
                "{key} is no flag of `rolegate {name}`; `rolegate {name} --help` lists them"
            ));
        }
        let texts = texts(&value).ok_or_else(|| format!("{key}: write one value, or a list"))?;
        file.push((key, texts));
    }
    Ok(file)
}

/// Returns what the file adds to the `given` flags, for those where only the highest source counts.
fn as_arguments(
    command: &Command,
    file: &[(String, Vec<String>)],
    given: &[&Arg],
) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for (key, texts) in file {
        let Some(flag) = flag(command, key) else {
            continue;
        };
        let merged = sources::rule(flag).is_some_and(|rule| rule != Rule::Highest);
        let is_given = given
            .iter()
            .any(|other| other.get_id() == flag.get_id() || exclude(command, flag, other));
        if !merged && !is_given {
            arguments.extend(texts.iter().map(|text| format!("--{key}={text}").into()));
        }
    }
    arguments
}

/// Whether two flags may not be given together.
fn exclude(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |from: &Arg, to: &Arg| {
        let conflicts = command.get_arg_conflicts_with(from);
        conflicts
            .iter()
            .any(|conflict| conflict.get_id() == to.get_id())
    };
    names(one, other) || names(other, one)
}

/// The last value of a flag on the command line, or that of its environment variable. Empty for
/// a flag without one.
fn value_of(flag: &Arg, arguments: &[OsString], environment: Environment<'_>) -> Option<String> {
    let long = format!("--{}", flag.get_long()?);
    let mut found = None;
    let mut rest = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .peekable();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        }
        match argument.strip_prefix(&long) {
            Some("") => found = Some(rest.peek().map(ToString::to_string).unwrap_or_default()),
            Some(value) => found = value.strip_prefix('=').map(Into::into).or(found),
            None => {}
        }
    }
    found.or_else(|| environment(flag.get_env()?.to_str()?))
}

fn read(path: &str) -> Result<BTreeMap<String, Value>, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > MOST_BYTES {
        return Err(format!("it is larger than {MOST_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_saphyr::from_str(&text).map_err(|error| format!("it is not a YAML map of flags: {error}"))
}

/// The value, or the values of a list, as on the command line.
fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}
