//! The flags about rules that a process was started with, by the names under which they were given.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use rolegate_rules::in_force::GivenRuleFlags;

use crate::environment::variable;
use crate::rule_flags::RuleFlags;

/// Flags that count beside a `RolegateConfig` too.
const ALWAYS: [&str; 2] = ["cluster_config", "own_role"];

/// The flags about rules that are given on the command line or in the environment. It is a field of
/// a command's flags that takes no arguments of its own, and stands before [`RuleFlags`]: a field takes
/// its arguments out of the matches.
#[derive(Debug, Default, Clone)]
pub(crate) struct GivenFlags(pub(crate) GivenRuleFlags);

impl GivenFlags {
    /// All of them, for a process that has no use for any.
    pub(crate) fn all(&self) -> Vec<&str> {
        let GivenRuleFlags {
            base,
            default_role,
            others,
        } = &self.0;
        let all = base.iter().chain(default_role).chain(others);
        all.map(String::as_str).collect()
    }
}

impl FromArgMatches for GivenFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = GivenRuleFlags::default();
        for flag in RuleFlags::augment_args(Command::new("rules")).get_arguments() {
            let id = flag.get_id().as_str();
            let names = match id {
                id if ALWAYS.contains(&id) => continue,
                "base_role_arn" => &mut given.base,
                "default_role" => &mut given.default_role,
                _ => &mut given.others,
            };
            names.extend(names_of(flag, matches.value_source(id)));
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for GivenFlags {
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
        given: GivenFlags,
        #[command(flatten)]
        _rules: RuleFlags,
    }

    #[test]
    fn only_what_is_given_is_named() {
        let given = |arguments: &[&str]| {
            let arguments = std::iter::once("test").chain(arguments.iter().copied());
            Flags::parse_from(arguments).given
        };
        assert!(given(&[]).all().is_empty());
        let some = given(&[
            "--base-role-arn=arn:aws:iam::123456789012:role/",
            "--own-role=node",
            "--cluster-config=required",
            "--layer=grants=audit",
            "--namespace-restrictions",
        ]);
        assert_eq!(some.0.base, ["--base-role-arn"]);
        assert_eq!(some.0.default_role, [""; 0]);
        assert_eq!(some.0.others, ["--namespace-restrictions", "--layer"]);
    }
}
