//! `--config FILE`: flags from a YAML file. Its keys are the flags' names; what the command line
//! or the environment says goes before it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command, Error};
use serde_json::Value;

/// The flag that names the file.
const CONFIG: &str = "config";
/// Largest configuration file, bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// The arguments with the file's values before them, where they or the environment name a file.
/// A flag of the file is left out where the command line or the environment gives it, or gives
/// one that excludes it.
///
/// # Errors
/// A file that cannot be read, or a key that is no flag.
pub(crate) fn with_file(
    definition: &mut Command,
    mut arguments: Vec<OsString>,
) -> Result<Vec<OsString>, Error> {
    let command = arguments.get(1).and_then(|name| name.to_str());
    let Some(command) = command
        .and_then(|name| definition.find_subcommand(name))
        .cloned()
    else {
        return Ok(arguments);
    };
    let Some(config) = flag(&command, CONFIG) else {
        return Ok(arguments);
    };
    let Some(path) = value_of(config, &arguments) else {
        return Ok(arguments);
    };
    let values = read(&path).and_then(|values| {
        let given = command
            .get_arguments()
            .filter(|flag| is_given(flag, &arguments));
        as_arguments(&command, &values, &given.collect::<Vec<_>>())
    });
    match values {
        Ok(values) => {
            arguments.splice(2..2, values);
            Ok(arguments)
        }
        Err(message) => {
            let message = format!("--config {path}: {message}");
            Err(definition.error(ErrorKind::InvalidValue, message))
        }
    }
}

fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut flags = command.get_arguments();
    flags.find(|flag| flag.get_long() == Some(name))
}

fn as_arguments(
    command: &Command,
    values: &BTreeMap<String, Value>,
    given: &[&Arg],
) -> Result<Vec<OsString>, String> {
    let mut arguments = Vec::new();
    for (key, value) in values {
        let Some(flag) = flag(command, key).filter(|_| key != CONFIG) else {
            let name = command.get_name();
            return Err(format!(
                "{key} is no flag of `rolegate {name}`; `rolegate {name} --help` lists them"
            ));
        };
        let texts = texts(value).ok_or_else(|| format!("{key}: write one value, or a list"))?;
        if !given
            .iter()
            .any(|other| other.get_id() == flag.get_id() || exclude(command, flag, other))
        {
            arguments.extend(texts.iter().map(|text| format!("--{key}={text}").into()));
        }
    }
    Ok(arguments)
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

fn is_given(flag: &Arg, arguments: &[OsString]) -> bool {
    value_of(flag, arguments).is_some()
}

/// The last value of a flag on the command line, or that of its environment variable. Empty for
/// a flag without one.
fn value_of(flag: &Arg, arguments: &[OsString]) -> Option<String> {
    let long = format!("--{}", flag.get_long()?);
    let mut found = None;
    let mut rest = arguments
        .iter()
        .skip(2)
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
    found.or_else(|| std::env::var(flag.get_env()?).ok())
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
