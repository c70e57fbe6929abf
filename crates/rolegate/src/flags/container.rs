//! The flags with which a container of a pod template runs rolegate. They are parsed from the
//! command, arguments and environment as the process itself would parse them. Values from other
//! objects or from the created pod are unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::{Arg, FromArgMatches};
use rolegate_core::text::plain;
use rolegate_inventory::in_force::UnknownFlag;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::{Cli, Command, definition, with_implied_command};
use crate::config_file::{flag, innermost, value_of};
use crate::flags::kubernetes::refuse_token_argument;
use crate::sources::{self, Rule};

/// The name of the program.
const PROGRAM: &str = "rolegate";
/// Maximum size of one argument or variable of a process, in bytes, as in Linux (`MAX_ARG_STRLEN`).
/// Each variable can contain the previous one twice.
const MAX_TEXT: usize = 128 * 1024;
/// Maximum size of all variables together, in bytes, as in Linux.
const MAX_VARIABLES: usize = 6 * 1024 * 1024;

/// The fields of a container that determine the started process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    env_from: Option<Vec<VariablesFrom>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variable {
    name: String,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    value_from: Option<serde_json::Map<String, Value>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VariablesFrom {
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    config_map_ref: Option<Named>,
    #[serde(default)]
    secret_ref: Option<Named>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

/// A text as the process gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    Known(String),
    /// A part is from another object.
    Unknown {
        /// The text before that part.
        head: String,
        /// The source of that part.
        from: String,
    },
}

impl Text {
    /// Returns the value of a variable that exceeds a process's limits.
    fn too_long() -> Self {
        Self::Unknown {
            head: String::new(),
            from: "variables that are too long for a process".to_owned(),
        }
    }

    fn len(&self) -> usize {
        let (Self::Known(text) | Self::Unknown { head: text, .. }) = self;
        text.len()
    }
}

/// The command that a container runs.
#[derive(Debug)]
pub(crate) struct Started {
    /// The command with its flags. Unknown flags have their defaults.
    pub(crate) command: Command,
    /// The flags with unknown values.
    pub(crate) unknown: BTreeSet<UnknownFlag>,
}

/// The reason why the flags of a container are unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlagsError {
    /// No container, or several, look like rolegate.
    #[error("its pod template has {0} containers that may run rolegate")]
    Containers(usize),
    /// The template is not a valid pod template.
    #[error("its pod template cannot be read: {0}")]
    Malformed(String),
    /// The container starts another program, such as a shell.
    #[error(
        "container {container} starts {program:?} instead of rolegate, so its flags are unknown"
    )]
    Program {
        /// The container.
        container: String,
        /// The program.
        program: String,
    },
    /// A whole argument is from another object.
    #[error("an argument of container {container} comes from {from}")]
    Argument {
        /// The container.
        container: String,
        /// The source of the argument.
        from: String,
    },
    /// The container has a configuration file.
    #[error(
        "container {container} reads flags from a file (--config), which is not accessible here"
    )]
    ConfigFile {
        /// The container.
        container: String,
    },
    /// The process would reject the flags.
    #[error("the flags of container {container} are refused: {why}")]
    Refused {
        /// The container.
        container: String,
        /// The process's error message.
        why: String,
    },
}

/// Returns the command and flags of the container that runs rolegate in the pods of `workload`, a
/// DaemonSet or Deployment.
///
/// # Errors
/// [`FlagsError`]
pub(crate) fn started(workload: &Value) -> Result<Started, FlagsError> {
    let containers = workload.pointer("/spec/template/spec/containers");
    let containers: Vec<Container> =
        Vec::deserialize(containers.unwrap_or(&Value::Array(Vec::new())))
            .map_err(|error| FlagsError::Malformed(error.to_string()))?;
    let container = match &*containers {
        [only] => only,
        several => {
            let ours: Vec<_> = several.iter().filter(|one| one.is_ours()).collect();
            match *ours {
                [one] => one,
                _ => return Err(FlagsError::Containers(ours.len())),
            }
        }
    };
    container.started()
}

impl Container {
    /// Returns whether the container looks like rolegate among others.
    fn is_ours(&self) -> bool {
        let program = self.command.as_ref().and_then(|words| words.first());
        match program {
            Some(program) => is_program(program),
            None => {
                let image = self
                    .image
                    .as_deref()
                    .unwrap_or_default()
                    .split('@')
                    .next()
                    .unwrap_or_default();
                let name = image
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .split(':')
                    .next()
                    .unwrap_or_default();
                name.contains(PROGRAM)
            }
        }
    }

    fn started(&self) -> Result<Started, FlagsError> {
        let container = || self.name.clone();
        let environment = Environment::of(self);
        let words = |words: &Option<Vec<String>>| -> Vec<Text> {
            let words = words.iter().flatten();
            words.map(|word| environment.expanded(word)).collect()
        };
        let mut command = words(&self.command).into_iter();
        match command.next() {
            // The entrypoint of the image, which is rolegate.
            None => {}
            Some(Text::Known(program)) if is_program(&program) => {}
            Some(Text::Known(program)) => {
                let container = container();
                return Err(FlagsError::Program { container, program });
            }
            Some(Text::Unknown { from, .. }) => {
                let container = container();
                return Err(FlagsError::Argument { container, from });
            }
        }
        let words: Vec<_> = command.chain(words(&self.args)).collect();
        self.parsed(words, &environment)
    }

    fn parsed(&self, words: Vec<Text>, environment: &Environment) -> Result<Started, FlagsError> {
        let container = || self.name.clone();
        let mut definition = definition();
        definition.build();
        let mut unknown = BTreeSet::new();
        let mut arguments = vec![OsString::from(PROGRAM)];
        for word in words {
            match word {
                Text::Known(word) => arguments.push(word.into()),
                Text::Unknown { head, from } => {
                    let before = with_implied_command(arguments.clone());
                    let (command, place) = innermost(&definition, &before);
                    let last = before.get(place..).and_then(<[_]>::last);
                    let last = last.and_then(|last| last.to_str());
                    let (named, is_apart) = match head.split_once('=') {
                        Some((name, _)) => (named(&command, name), false),
                        None => (last.and_then(|last| named(&command, last)), true),
                    };
                    let Some(found) = named else {
                        let container = container();
                        return Err(FlagsError::Argument { container, from });
                    };
                    unknown.insert(unknown_flag(found, from));
                    if is_apart {
                        arguments.pop();
                    }
                    // Flags without a command imply `agent`; the command must be added if they are
                    // left out.
                    if arguments.len() == 1 {
                        arguments.push("agent".into());
                    }
                }
            }
        }
        refuse_token_argument(&arguments).map_err(|why| FlagsError::Refused {
            container: container(),
            why: why.to_owned(),
        })?;
        let mut arguments = with_implied_command(arguments);
        let (command, place) = innermost(&definition, &arguments);
        let rest = arguments.get(place..).unwrap_or_default();
        let lower = environment
            .arguments(&command, rest, &mut unknown)
            .map_err(|why| FlagsError::Refused {
                container: container(),
                why,
            })?;
        let has_file = flag(&command, "config").is_some_and(|flag| {
            let given = value_of(flag, rest, &|name| environment.known(name));
            given.is_some_and(|path| !path.is_empty())
                || unknown.iter().any(|one| flag.get_id() == one.id.as_str())
        });
        if has_file {
            let container = container();
            return Err(FlagsError::ConfigFile { container });
        }
        arguments.splice(place..place, lower);
        let refused = |error: clap::Error| {
            let message = error.to_string();
            let text = message.lines().next().unwrap_or_default();
            FlagsError::Refused {
                container: container(),
                why: text.strip_prefix("error: ").unwrap_or(text).to_owned(),
            }
        };
        // The environment is that of the container, not of this process.
        let definition = without_environment(crate::cli::definition());
        let matches = definition
            .try_get_matches_from(arguments)
            .map_err(refused)?;
        let command = Cli::from_arg_matches(&matches).map_err(refused)?.command;
        Ok(Started { command, unknown })
    }
}

fn is_program(word: &str) -> bool {
    word.rsplit('/').next() == Some(PROGRAM)
}

fn without_environment(command: clap::Command) -> clap::Command {
    command
        .mut_args(|flag| flag.env(None::<&'static str>))
        .mut_subcommands(without_environment)
}

/// Returns the flag of `command` that a word with dashes names.
fn named<'a>(command: &'a clap::Command, word: &str) -> Option<&'a Arg> {
    let name = word.strip_prefix("--")?;
    let mut flags = command.get_arguments();
    flags.find(|flag| {
        let aliases = flag.get_all_aliases().unwrap_or_default();
        flag.get_long() == Some(name) || aliases.contains(&name)
    })
}

fn unknown_flag(flag: &Arg, from: String) -> UnknownFlag {
    UnknownFlag {
        id: flag.get_id().to_string(),
        flag: format!("--{}", flag.get_long().unwrap_or_default()),
        from,
    }
}

/// The environment of a container.
struct Environment {
    variables: BTreeMap<String, Text>,
    /// The prefixes of variables from other objects, with the object.
    from: Vec<(String, String)>,
}

impl Environment {
    fn of(container: &Container) -> Self {
        let from = container.env_from.iter().flatten().map(|one| {
            let object = match (&one.config_map_ref, &one.secret_ref) {
                (Some(map), _) => format!("ConfigMap {}", plain(&map.name)),
                (None, Some(secret)) => format!("Secret {}", plain(&secret.name)),
                (None, None) => "another object".to_owned(),
            };
            (one.prefix.clone().unwrap_or_default(), object)
        });
        let mut environment = Self {
            variables: BTreeMap::new(),
            from: from.collect(),
        };
        let mut length = 0;
        for variable in container.env.iter().flatten() {
            let mut text = match (&variable.value, &variable.value_from) {
                // As in the kubelet, an empty value means none.
                (Some(value), _) if !value.is_empty() => environment.expanded(value),
                (_, Some(from)) => Text::Unknown {
                    head: String::new(),
                    from: referred(from),
                },
                _ => Text::Known(String::new()),
            };
            length += text.len();
            if length > MAX_VARIABLES {
                text = Text::too_long();
            }
            environment.variables.insert(variable.name.clone(), text);
        }
        environment
    }

    /// Returns the value of a variable, or `None` if it is not set.
    fn value(&self, name: &str) -> Option<Text> {
        if let Some(text) = self.variables.get(name) {
            return Some(text.clone());
        }
        let from = self
            .from
            .iter()
            .find(|(prefix, _)| name.starts_with(prefix.as_str()))
            .map(|(_, object)| object.clone())
            .or_else(|| {
                let of_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
                of_service.then(|| format!("{}, a variable of a Service", plain(name)))
            })?;
        Some(Text::Unknown {
            head: String::new(),
            from,
        })
    }

    fn known(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Text::Known(text) => Some(text),
            Text::Unknown { .. } => None,
        }
    }

    /// Replaces `$(NAME)` in a text as the kubelet does: `$$` is a dollar sign, and a reference to
    /// an unset variable stays unchanged.
    fn expanded(&self, text: &str) -> Text {
        let mut done = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            done.push_str(before);
            if done.len() > MAX_TEXT {
                return Text::too_long();
            }
            if let Some(after) = after.strip_prefix('$') {
                done.push('$');
                rest = after;
                continue;
            }
            let reference = after
                .strip_prefix('(')
                .and_then(|after| after.split_once(')'));
            let Some((name, after_reference)) = reference else {
                done.push('$');
                rest = after;
                continue;
            };
            match self.value(name) {
                Some(Text::Known(value)) => done.push_str(&value),
                Some(Text::Unknown { head, from }) => {
                    done.push_str(&head);
                    return Text::Unknown { head: done, from };
                }
                None => done.push_str(&format!("$({name})")),
            }
            rest = after_reference;
        }
        done.push_str(rest);
        if done.len() > MAX_TEXT {
            return Text::too_long();
        }
        Text::Known(done)
    }

    /// Returns the arguments for the values that the environment gives `command` in addition to its
    /// arguments `rest`. Adds flags whose variables have unknown values to `unknown`.
    fn arguments(
        &self,
        command: &clap::Command,
        rest: &[OsString],
        unknown: &mut BTreeSet<UnknownFlag>,
    ) -> Result<Vec<OsString>, String> {
        let mut arguments = Vec::new();
        for flag in command.get_arguments() {
            let (Some(long), Some(variable)) = (flag.get_long(), flag.get_env()) else {
                continue;
            };
            let Some(value) = variable.to_str().and_then(|name| self.value(name)) else {
                continue;
            };
            let adds_up = sources::rule(flag).is_some_and(|rule| rule != Rule::Highest);
            let is_given = value_of(flag, rest, &|_| None).is_some();
            match value {
                Text::Unknown { from, .. } if adds_up || !is_given => {
                    unknown.insert(unknown_flag(flag, from));
                }
                Text::Known(value) if !adds_up && !is_given => {
                    arguments.push(format!("--{long}={value}").into());
                }
                Text::Known(_) | Text::Unknown { .. } => {}
            }
        }
        let known = |name: &str| self.known(name);
        arguments.extend(sources::added(command, rest, &known, &[])?);
        Ok(arguments)
    }
}

/// Returns the object that a variable refers to.
fn referred(from: &serde_json::Map<String, Value>) -> String {
    let Some((kind, reference)) = from.iter().next() else {
        return "another object".into();
    };
    let text = |field| plain(reference.get(field).and_then(Value::as_str).unwrap_or("?"));
    match kind.as_str() {
        "configMapKeyRef" => format!("ConfigMap {}", text("name")),
        "secretKeyRef" => format!("Secret {}", text("name")),
        "fieldRef" => format!("the pod's own {}", text("fieldPath")),
        "resourceFieldRef" => format!("the container's {}", text("resource")),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests;
