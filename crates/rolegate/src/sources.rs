//! Merging of flags with several values that several sources can set: the command line, the
//! environment and the file of `--config`. For other flags only the source of highest precedence
//! applies. That would drop restrictions of the other sources, so each of these flags has its own
//! [`Rule`].

use std::ffi::OsString;
use std::fmt;

use clap::{Arg, ArgAction, Command};
use rolegate_core::layer::LayerId;

/// Looks up a variable of the environment.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The flag that is shorthand for a layer's mode.
const RESTRICTIONS: &str = "namespace-restrictions";
/// The layer of that flag, without the mode.
const RESTRICTED: &str = LayerId::Namespace.as_str();

/// A source of flags, in order of increasing precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The file of `--config`.
    File,
    /// A variable of the environment.
    Environment,
    /// The command line.
    CommandLine,
}

/// The merge rule of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All values of all sources apply: each restricts something or adds policies.
    AddUp,
    /// Only one source may set it, or all must set the same: each value allows something, and the
    /// intended list would be ambiguous.
    OneSource,
    /// The layers of all sources apply. A source may make a layer stricter than a source of lower
    /// precedence, but not less strict.
    Layers,
    /// Only the source of highest precedence applies, as for flags with one value.
    Highest,
}

/// The rule of each flag that takes several values and has an environment variable.
const RULES: [(&str, Rule); 9] = [
    ("layer", Rule::Layers),
    ("reserved-role", Rule::AddUp),
    ("policy-namespaces", Rule::AddUp),
    ("replicate", Rule::AddUp),
    ("metadata-allow", Rule::OneSource),
    // Like other addresses to listen on.
    ("container-credentials-address", Rule::Highest),
    // A chain has an order, and its external IDs follow that order.
    ("assume-role", Rule::Highest),
    ("assume-role-external-id", Rule::Highest),
    // DNS names of a certificate.
    ("tls-extra-names", Rule::Highest),
];

/// Returns the rule of a flag, or `None` for a flag with one value.
pub(crate) fn rule(flag: &Arg) -> Option<Rule> {
    let name = flag.get_long()?;
    let (_, rule) = RULES.iter().find(|(known, _)| *known == name)?;
    Some(*rule)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "in the file of --config",
            Self::Environment => "in the environment",
            Self::CommandLine => "on the command line",
        })
    }
}

/// The values of one flag by source, in order of increasing precedence.
#[derive(Debug)]
struct Given {
    name: String,
    sources: Vec<(Source, Vec<String>)>,
}

/// Returns the arguments that the other sources add to the command line. `file` contains the values
/// of the file by flag, `environment` looks up a variable, and `arguments` are those of `command`
/// only.
///
/// # Errors
/// Returns a sentence about sources that contradict each other.
pub(crate) fn added(
    command: &Command,
    arguments: &[OsString],
    environment: Environment<'_>,
    file: &[(String, Vec<String>)],
) -> Result<Vec<OsString>, String> {
    let mut added = Vec::new();
    for flag in command.get_arguments() {
        let Some(rule) = rule(flag).filter(|rule| *rule != Rule::Highest) else {
            continue;
        };
        let given = given(flag, arguments, environment, file);
        match rule {
            Rule::OneSource => given.check_same()?,
            Rule::Layers => {
                let switch = command
                    .get_arguments()
                    .find(|flag| flag.get_long() == Some(RESTRICTIONS))
                    .map(|flag| self::given(flag, arguments, environment, file));
                given.check_layers(switch.as_ref())?;
            }
            Rule::AddUp | Rule::Highest => {}
        }
        for (source, values) in &given.sources {
            // Equal values are added once.
            let is_set_higher = rule == Rule::OneSource && given.highest() != Some(*source);
            if *source != Source::CommandLine && !is_set_higher {
                let name = &given.name;
                added.extend(
                    values
                        .iter()
                        .map(|value| format!("--{name}={value}").into()),
                );
            }
        }
    }
    Ok(added)
}

/// Returns the values of a flag by source. Sources that do not set it are omitted.
fn given(
    flag: &Arg,
    arguments: &[OsString],
    environment: Environment<'_>,
    file: &[(String, Vec<String>)],
) -> Given {
    let name = flag.get_long().unwrap_or_default();
    let split = |text: String| -> Vec<String> {
        match flag.get_value_delimiter() {
            Some(delimiter) => text.split(delimiter).map(str::to_owned).collect(),
            None => vec![text],
        }
    };
    let variable = flag.get_env().and_then(|name| environment(name.to_str()?));
    let of_file = file.iter().find(|(known, _)| known == name);
    let sources = [
        (
            Source::File,
            of_file
                .map(|(_, values)| values.clone())
                .unwrap_or_default(),
        ),
        // A variable that is set to an empty value adds nothing.
        (
            Source::Environment,
            variable
                .filter(|text| !text.is_empty())
                .into_iter()
                .collect(),
        ),
        (Source::CommandLine, on_command_line(flag, arguments)),
    ];
    let sources =
        sources.map(|(source, values)| (source, values.into_iter().flat_map(split).collect()));
    Given {
        name: name.to_owned(),
        sources: sources
            .into_iter()
            .filter(|(_, values): &(Source, Vec<String>)| !values.is_empty())
            .collect(),
    }
}

/// Returns all values of a flag on the command line. A flag without a value is `true`.
fn on_command_line(flag: &Arg, arguments: &[OsString]) -> Vec<String> {
    let Some(name) = flag.get_long() else {
        return Vec::new();
    };
    let name = format!("--{name}");
    let is_switch = !matches!(flag.get_action(), ArgAction::Append);
    let mut values = Vec::new();
    let mut rest = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = rest.next() {
        if argument == "--" {
            break;
        }
        match argument.strip_prefix(&name) {
            Some("") if is_switch => values.push("true".into()),
            Some("") => values.extend(rest.next().map(Into::into)),
            Some(value) => values.extend(value.strip_prefix('=').map(Into::into)),
            None => {}
        }
    }
    values
}

impl Given {
    fn highest(&self) -> Option<Source> {
        self.sources.last().map(|(source, _)| *source)
    }

    /// Returns an error if two sources set different values.
    fn check_same(&self) -> Result<(), String> {
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort();
            values.dedup();
            values
        };
        for pair in self.sources.windows(2) {
            let [(lower, below), (higher, above)] = pair else {
                continue;
            };
            if sorted(below) != sorted(above) {
                let name = &self.name;
                return Err(format!(
                    "--{name} is set {lower} and, to other values, {higher}: each value allows something, so set all of them in one source"
                ));
            }
        }
        Ok(())
    }

    /// Returns an error if a source makes a layer less strict than a source of lower precedence.
    fn check_layers(&self, switch: Option<&Given>) -> Result<(), String> {
        let mut entries = Vec::new();
        for (source, values) in switch.into_iter().flat_map(|switch| &switch.sources) {
            let mode = match values.last().map(String::as_str) {
                Some("true") => "enforce",
                _ => "off",
            };
            entries.push((*source, RESTRICTED, mode));
        }
        for (source, values) in &self.sources {
            let modes = values.iter().filter_map(|value| value.split_once('='));
            entries.extend(modes.map(|(layer, mode)| (*source, layer, mode)));
        }
        for (higher, layer, mode) in &entries {
            let stricter = entries.iter().find(|(lower, other, closed)| {
                lower < higher && other == layer && strictness(closed) > strictness(mode)
            });
            if let Some((lower, _, closed)) = stricter {
                return Err(format!(
                    "layer {layer} is {closed} {lower} and {mode} {higher}: a source cannot make a layer less strict than another source, so replace {closed} with {mode} there"
                ));
            }
        }
        Ok(())
    }
}

/// Ranks a layer's mode by strictness. Flag parsing rejects invalid modes.
fn strictness(mode: &str) -> u8 {
    match mode {
        "enforce" => 2,
        "audit" => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
