//! Which of a command's flags were given, and those about rules by the names under which they were.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use rolegate_rules::in_force::GivenRuleFlags;

use crate::environment::variable;
use crate::rule_flags::RuleFlags;

/// Flags that count beside a `RolegateConfig` too.
const ALWAYS: [&str; 2] = ["cluster_config", "own_role"];

/// The flags of a command that the command line or the environment gives, and not their default. It is
/// a field of a command's flags that takes no arguments of its own, and stands before the flags that
/// it is asked about: a field takes its arguments out of the matches.
#[derive(Debug, Default, Clone)]
pub(crate) struct Given {
    /// The names of the flags' fields.
    fields: BTreeSet<String>,
    /// Those about rules, by the names under which they are given.
    rules: GivenRuleFlags,
}

impl Given {
    /// Whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.fields.contains(flag)
    }

    /// The flag's value where it was given, and otherwise the lower one.
    pub(crate) fn pick<T>(&self, flag: &str, value: T, lower: T) -> T {
        if self.has(flag) { value } else { lower }
    }

    /// The flags about rules that do not count in any case, as a process logs them.
    pub(crate) fn rules(&self) -> &GivenRuleFlags {
        &self.rules
    }

    /// All flags about rules, for a process that has no use for any.
    pub(crate) fn all_rules(&self) -> Vec<&str> {
        let GivenRuleFlags {
            base,
            default_role,
            others,
        } = &self.rules;
        let all = base.iter().chain(default_role).chain(others);
        all.map(String::as_str).collect()
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let ids = matches.ids().map(|id| id.as_str());
        let given = ids.filter(|id| {
            let source = matches.value_source(id);
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        });
        let fields: BTreeSet<_> = given.map(str::to_owned).collect();
        let mut rules = GivenRuleFlags::default();
        for flag in RuleFlags::augment_args(Command::new("rules")).get_arguments() {
            let id = flag.get_id().as_str();
            let names = match id {
                id if ALWAYS.contains(&id) || !fields.contains(id) => continue,
                "base_role_arn" => &mut rules.base,
                "default_role" => &mut rules.default_role,
                _ => &mut rules.others,
            };
            names.extend(names_of(flag, matches.value_source(id)));
        }
        Ok(Self { fields, rules })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

/// The names under which a flag is given. Values of several places may be put on the command line
/// ([`crate::sources`]), so the variable is named beside the flag.
fn names_of(flag: &Arg, source: Option<ValueSource>) -> Vec<String> {
    let of_variable = || {
        let name = flag.get_env()?.to_str()?;
        variable(name)
            .filter(|value| !value.is_empty())
            .map(|_| name.to_owned())
    };
    match source {
        Some(ValueSource::CommandLine) => {
            let long = flag.get_long().map(|long| format!("--{long}"));
            long.into_iter().chain(of_variable()).collect()
        }
        Some(ValueSource::EnvVariable) => of_variable().into_iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        _rules: RuleFlags,
    }

    #[test]
    fn only_what_is_given_is_named() {
        let given = |arguments: &[&str]| {
            let arguments = std::iter::once("test").chain(arguments.iter().copied());
            Flags::parse_from(arguments).given
        };
        assert!(given(&[]).all_rules().is_empty());
        let some = given(&[
            "--base-role-arn=arn:aws:iam::123456789012:role/",
            "--own-role=node",
            "--cluster-config=required",
            "--layer=grants=audit",
            "--namespace-restrictions",
        ]);
        assert_eq!(some.rules.base, ["--base-role-arn"]);
        assert_eq!(some.rules.default_role, [""; 0]);
        assert_eq!(some.rules.others, ["--namespace-restrictions", "--layer"]);
        assert!(some.has("own_role") && !some.has("default_role"));
    }
}
