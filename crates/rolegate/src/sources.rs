//! Flags with several values that may be given in several places: on the command line, in the
//! environment and in the file of `--config`. For other flags only the highest place counts. For
//! these, that would drop restrictions from a lower place, so each has its own [`Rule`].

use std::ffi::OsString;
use std::fmt;

use clap::{Arg, ArgAction, Command};

use crate::config_file::Environment;

/// The switch that is short for a layer's mode.
const RESTRICTIONS: &str = "namespace-restrictions";
/// The layer that it is shorthand for, without the mode.
const RESTRICTED: &str = "namespace";

/// A place where flags are given, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The file of `--config`.
    File,
    /// A variable of the environment.
    Environment,
    /// The command line.
    CommandLine,
}

/// The way in which values from several places combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All values of all places: each closes something, or shows policies more.
    AddUp,
    /// One place gives it, or all that do say the same: each value opens something, and which list
    /// was meant can't be told.
    OnePlace,
    /// The layers of all places. A higher place may make one stricter than a lower one, and not less
    /// strict.
    Layers,
    /// Only the highest place counts, as for flags with one value.
    Highest,
}

/// The rule of each flag that takes several values and has a variable of the environment.
const RULES: [(&str, Rule); 8] = [
    ("layer", Rule::Layers),
    ("own-role", Rule::AddUp),
    ("policy-namespaces", Rule::AddUp),
    ("replicate", Rule::AddUp),
    ("metadata-allow", Rule::OnePlace),
    // A chain has an order, and its external IDs have that of the chain.
    ("assume-role", Rule::Highest),
    ("assume-role-external-id", Rule::Highest),
    // Names that a certificate is for.
    ("tls-extra-names", Rule::Highest),
];

/// The rule of a flag; nothing for one of a single value.
pub(crate) fn rule(flag: &Arg) -> Option<Rule> {
    let name = flag.get_long()?;
    let (_, rule) = RULES.iter().find(|(known, _)| *known == name)?;
    Some(*rule)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "in the file of --config",
            Self::Environment => "in the environment",
            Self::CommandLine => "on the command line",
        })
    }
}

/// The values of one flag, by place, lowest first.
#[derive(Debug)]
struct Given {
    name: String,
    places: Vec<(Place, Vec<String>)>,
}

/// The arguments that say what lower places than the command line add to it. `file` has the values of
/// the file, by flag; `environment` looks up a variable; `arguments` are those of `command` alone.
///
/// # Errors
/// Places that contradict each other, in a sentence.
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
            Rule::OnePlace => given.check_same()?,
            Rule::Layers => {
                let switch = command
                    .get_arguments()
                    .find(|flag| flag.get_long() == Some(RESTRICTIONS));
                let switch = switch.map(|flag| self::given(flag, arguments, environment, file));
                given.check_layers(switch.as_ref())?;
            }
            Rule::AddUp | Rule::Highest => {}
        }
        for (place, values) in &given.places {
            // If all are the same, once is enough.
            let is_said = rule == Rule::OnePlace && given.highest() != Some(*place);
            if *place != Place::CommandLine && !is_said {
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

/// The values of a flag by place; places that give none are left out.
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
    let places = [
        (
            Place::File,
            of_file
                .map(|(_, values)| values.clone())
                .unwrap_or_default(),
        ),
        // A variable that is there and empty names nothing.
        (
            Place::Environment,
            variable
                .filter(|text| !text.is_empty())
                .into_iter()
                .collect(),
        ),
        (Place::CommandLine, on_command_line(flag, arguments)),
    ];
    let places =
        places.map(|(place, values)| (place, values.into_iter().flat_map(split).collect()));
    Given {
        name: name.to_owned(),
        places: places
            .into_iter()
            .filter(|(_, values): &(Place, Vec<String>)| !values.is_empty())
            .collect(),
    }
}

/// All values that the command line gives a flag; a switch without a value is `true`.
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
    fn highest(&self) -> Option<Place> {
        self.places.last().map(|(place, _)| *place)
    }

    /// Fails where two places give other values.
    fn check_same(&self) -> Result<(), String> {
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort();
            values.dedup();
            values
        };
        for pair in self.places.windows(2) {
            let [(lower, below), (higher, above)] = pair else {
                continue;
            };
            if sorted(below) != sorted(above) {
                let name = &self.name;
                return Err(format!(
                    "--{name} is given {lower} and, otherwise, {higher}: each value opens something, so give all of them in one place"
                ));
            }
        }
        Ok(())
    }

    /// Fails where a place makes a layer less strict than a lower one.
    fn check_layers(&self, switch: Option<&Given>) -> Result<(), String> {
        let mut entries = Vec::new();
        for (place, values) in switch.into_iter().flat_map(|switch| &switch.places) {
            let mode = match values.last().map(String::as_str) {
                Some("true") => "enforce",
                _ => "off",
            };
            entries.push((*place, RESTRICTED, mode));
        }
        for (place, values) in &self.places {
            let modes = values.iter().filter_map(|value| value.split_once('='));
            entries.extend(modes.map(|(layer, mode)| (*place, layer, mode)));
        }
        for (higher, layer, mode) in &entries {
            let stricter = entries.iter().find(|(lower, other, closed)| {
                lower < higher && other == layer && strictness(closed) > strictness(mode)
            });
            if let Some((lower, _, closed)) = stricter {
                return Err(format!(
                    "layer {layer} is {closed} {lower} and {mode} {higher}: what one place closes no other opens, so say {mode} where it says {closed}"
                ));
            }
        }
        Ok(())
    }
}

/// Ranks a layer's mode by strictness. Invalid modes are refused when flags are read.
fn strictness(mode: &str) -> u8 {
    match mode {
        "enforce" => 2,
        "audit" => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    /// All commands that can be run, by their words.
    fn commands() -> Vec<(String, Command)> {
        fn add(words: &str, command: &Command, all: &mut Vec<(String, Command)>) {
            for sub in command.get_subcommands() {
                let words = format!("{words} {}", sub.get_name());
                all.push((words.clone(), sub.clone()));
                add(&words, sub, all);
            }
        }
        let mut definition = definition();
        definition.build();
        let mut all = Vec::new();
        add("rolegate", &definition, &mut all);
        all
    }

    #[test]
    fn each_flag_of_several_values_has_its_rule() {
        let mut known = std::collections::BTreeSet::new();
        for (words, command) in commands() {
            for flag in command.get_arguments() {
                let several = matches!(flag.get_action(), ArgAction::Append);
                if several && flag.get_env().is_some() {
                    assert!(rule(flag).is_some(), "{words} {flag}");
                    known.extend(flag.get_long().map(str::to_owned));
                }
            }
        }
        assert!(
            RULES.iter().all(|(name, _)| known.contains(*name)),
            "{known:?}"
        );
    }

    type Places<'a> = (
        &'a [&'a str],
        &'a [(&'a str, &'a str)],
        &'a [(&'a str, &'a str)],
    );

    /// Returns the arguments to add to a command line, or why it is refused.
    fn merge(
        command: &Command,
        (line, variables, file): Places<'_>,
    ) -> Result<Vec<String>, String> {
        let line: Vec<OsString> = line.iter().map(OsString::from).collect();
        let file: Vec<_> = file
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
            .collect();
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let added = added(command, &line, &variable, &file)?;
        Ok(added
            .into_iter()
            .map(|text| text.into_string().unwrap())
            .collect())
    }

    /// Each command that has the flag, with the variable of it.
    fn having(name: &str) -> Vec<(String, Command, String)> {
        let has = |(words, command): (String, Command)| {
            let flag = command
                .get_arguments()
                .find(|flag| flag.get_long() == Some(name))?;
            let variable = flag.get_env()?.to_str()?.to_owned();
            Some((words, command, variable))
        };
        let found: Vec<_> = commands().into_iter().filter_map(has).collect();
        assert!(!found.is_empty(), "{name}");
        found
    }

    #[test]
    fn lists_that_close_add_up_in_every_command() {
        for (name, (one, two, three)) in [
            ("own-role", ("a", "b", "c")),
            ("policy-namespaces", ("a", "b", "c")),
            ("replicate", ("v1/a", "v1/b", "v1/c")),
        ] {
            for (words, command, variable) in having(name) {
                let line = format!("--{name}={three}");
                let places: Places<'_> = (&[&line], &[(&variable, two)], &[(name, one)]);
                let expected = [format!("--{name}={one}"), format!("--{name}={two}")];
                assert_eq!(merge(&command, places).unwrap(), expected, "{words}");
                // Of one place nothing is lost either.
                let alone: Places<'_> = (&[], &[(&variable, &format!("{one},{two}"))], &[]);
                assert_eq!(merge(&command, alone).unwrap(), expected, "{words}");
                let none: Places<'_> = (&["--", &line], &[(&variable, "")], &[]);
                assert!(merge(&command, none).unwrap().is_empty(), "{words}");
            }
        }
    }

    #[test]
    fn a_list_that_opens_is_given_in_one_place() {
        for (words, command, variable) in having("metadata-allow") {
            for places in [
                (
                    &["--metadata-allow=a"][..],
                    &[(&*variable, "a,b")][..],
                    &[][..],
                ),
                (&["--metadata-allow", "a"], &[], &[("metadata-allow", "b")]),
                (&[], &[(&variable, "a")], &[("metadata-allow", "b")]),
                (
                    &["--metadata-allow=a", "--metadata-allow=b"],
                    &[(&variable, "a")],
                    &[],
                ),
            ] {
                let error = merge(&command, places).unwrap_err();
                assert!(error.contains("in one place"), "{words}: {error}");
            }
            let same: Places<'_> = (&[], &[(&variable, "a")], &[("metadata-allow", "a")]);
            assert_eq!(merge(&command, same).unwrap(), ["--metadata-allow=a"]);
        }
    }

    #[test]
    fn layers_of_all_places_count_and_none_is_opened() {
        for (words, command, variable) in having("layer") {
            let restrictions = "ROLEGATE_NAMESPACE_RESTRICTIONS";
            let fine: [(Places<'_>, &[&str]); 4] = [
                (
                    (
                        &["--layer=grants=audit"],
                        &[(&variable, "namespace=enforce")],
                        &[],
                    ),
                    &["--layer=namespace=enforce"],
                ),
                (
                    (
                        &["--layer", "grants=enforce"],
                        &[(&variable, "grants=audit")],
                        &[],
                    ),
                    &["--layer=grants=audit"],
                ),
                (
                    (
                        &[],
                        &[(&variable, "rego=audit")],
                        &[("layer", "grants=enforce,rego=off")],
                    ),
                    &[
                        "--layer=grants=enforce",
                        "--layer=rego=off",
                        "--layer=rego=audit",
                    ],
                ),
                // Within one place the layer's own flag takes precedence.
                (
                    (
                        &["--namespace-restrictions", "--layer=namespace=audit"],
                        &[],
                        &[],
                    ),
                    &[],
                ),
            ];
            for (places, expected) in fine {
                assert_eq!(
                    merge(&command, places).unwrap(),
                    expected,
                    "{words} {places:?}"
                );
            }
            let refused: [Places<'_>; 7] = [
                (
                    &["--layer=namespace=off"],
                    &[(&variable, "namespace=enforce")],
                    &[],
                ),
                (
                    &["--layer=grants=audit"],
                    &[],
                    &[("layer", "grants=enforce")],
                ),
                (&[], &[(&variable, "rego=off")], &[("layer", "rego=audit")]),
                (&["--layer=namespace=audit"], &[(restrictions, "true")], &[]),
                (&["--layer=namespace=off"], &[], &[(RESTRICTIONS, "true")]),
                (
                    &["--namespace-restrictions=false"],
                    &[(restrictions, "true")],
                    &[],
                ),
                (
                    &["--namespace-restrictions=false"],
                    &[(&variable, "namespace=audit")],
                    &[],
                ),
            ];
            for places in refused {
                let error = merge(&command, places).unwrap_err();
                assert!(
                    error.contains("no other opens"),
                    "{words} {places:?}: {error}"
                );
            }
        }
    }
}
