//! `--config FILE`: flags from a YAML file. Its keys are the flags' names; what the command line
//! or the environment says goes before it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, Error};
use serde_json::Value;

/// Largest configuration file, bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// The definition with the file's values as defaults, where `arguments` or the environment name
/// a file.
///
/// # Errors
/// A file that cannot be read, or a key that is no flag.
pub(crate) fn with_defaults(
    mut definition: Command,
    arguments: &[OsString],
) -> Result<Command, Error> {
    let path = Command::new("config")
        .ignore_errors(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(
            Arg::new("config")
                .long("config")
                .env("ROLEGATE_CONFIG")
                .action(ArgAction::Set),
        )
        .arg(Arg::new("rest").num_args(0..).trailing_var_arg(false))
        .try_get_matches_from(only_config(arguments))?
        .get_one::<String>("config")
        .cloned();
    let Some(path) = path else {
        return Ok(definition);
    };
    let fault = |definition: &mut Command, message: String| {
        definition.error(
            ErrorKind::InvalidValue,
            format!("--config {path}: {message}"),
        )
    };
    let values = match read(&path) {
        Ok(values) => values,
        Err(message) => return Err(fault(&mut definition, message)),
    };
    let command = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .find(|argument| definition.find_subcommand(argument).is_some())
        .unwrap_or_default()
        .to_owned();
    let Some(subcommand) = definition.find_subcommand(&command) else {
        return Ok(definition);
    };
    let mut defaults = Vec::new();
    let mut message = None;
    for (key, value) in values {
        let flag = subcommand
            .get_arguments()
            .find(|flag| flag.get_long() == Some(key.as_str()) && key != "config");
        match (flag, texts(&value)) {
            (Some(flag), Some(texts)) => defaults.push((flag.get_id().clone(), texts)),
            (Some(_), None) => {
                message = Some(format!("{key}: write one value, or a list of values"));
            }
            (None, _) => {
                message = Some(format!(
                    "{key} is no flag of `rolegate {command}`; `rolegate {command} --help` lists them"
                ));
            }
        }
    }
    if let Some(message) = message {
        return Err(fault(&mut definition, message));
    }
    Ok(definition.mut_subcommand(command, |subcommand| {
        defaults
            .into_iter()
            .fold(subcommand, |subcommand, (id, texts)| {
                subcommand.mut_arg(id, |flag| flag.default_values(texts))
            })
    }))
}

/// The program's name and `--config` with its value, and nothing else.
fn only_config(arguments: &[OsString]) -> Vec<OsString> {
    let mut kept: Vec<OsString> = arguments.first().cloned().into_iter().collect();
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            kept.push(argument.clone());
            kept.extend(rest.next().cloned());
        } else if argument.as_encoded_bytes().starts_with(b"--config=") {
            kept.push(argument.clone());
        }
    }
    kept
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
