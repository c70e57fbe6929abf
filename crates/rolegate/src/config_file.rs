//! `--config FILE`: flags from a YAML file. Its keys are the flags' names. Values from the command
//! line or the environment override the file's, or are added to them ([`crate::sources`]).

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command, Error};
use serde_json::Value;

use crate::sources::{self, Environment, Rule};

/// The flag that names the file.
const CONFIG: &str = "config";
/// Maximum size of a configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Returns the arguments, preceded by the values from sources of lower precedence: the file, if the
/// arguments or the environment name one, and the environment for flags whose sources are merged. A
/// flag of the file is omitted if the command line or the environment sets it, or sets a flag that
/// excludes it, unless its sources are merged.
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

/// Returns the command that the arguments name, and the index of its own arguments.
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

pub(crate) fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut flags = command.get_arguments();
    flags.find(|flag| flag.get_long() == Some(name))
}

/// Returns the flags of the file with their values.
fn of_file(
    command: &Command,
    values: BTreeMap<String, Value>,
) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut file = Vec::new();
    for (key, value) in values {
        if flag(command, &key).is_none() || key == CONFIG {
            let name = command.get_name();
            return Err(format!(
                "{key} is not a flag of `rolegate {name}`; `rolegate {name} --help` lists them"
            ));
        }
        let texts = texts(&value).ok_or_else(|| format!("{key}: write one value, or a list"))?;
        file.push((key, texts));
    }
    Ok(file)
}

/// Returns the file's arguments for flags without merged sources, except for `given` ones.
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

/// Returns whether two flags exclude each other.
fn exclude(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |from: &Arg, to: &Arg| {
        let conflicts = command.get_arg_conflicts_with(from);
        conflicts
            .iter()
            .any(|conflict| conflict.get_id() == to.get_id())
    };
    names(one, other) || names(other, one)
}

/// Returns the last value of a flag on the command line, or that of its environment variable. It is
/// empty for a flag without a value.
pub(crate) fn value_of(
    flag: &Arg,
    arguments: &[OsString],
    environment: Environment<'_>,
) -> Option<String> {
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
    if size > MAX_FILE_BYTES {
        return Err(format!("it is larger than {MAX_FILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_saphyr::from_str(&text).map_err(|error| format!("it is not a YAML map of flags: {error}"))
}

/// Returns the value, or the items of a list, as command-line values.
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
