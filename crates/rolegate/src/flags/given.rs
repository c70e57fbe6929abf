//! The flags that were given to a command, and the names under which its rule flags were given.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use rolegate_rules::in_force::GivenRuleFlags;

use crate::environment::variable;
use crate::flags::given_fields::GivenFields;
use crate::flags::rules::RuleFlags;

/// Flags that apply in addition to a `RolegateConfig`.
const ALWAYS: [&str; 2] = ["cluster_config", "reserved_role"];

/// The flags that were given to a command. It is a field of a command's flags that takes no
/// arguments of its own. It must precede the flags that it is queried about, since a field removes
/// its arguments from the matches.
#[derive(Debug, Default, Clone)]
pub(crate) struct Given {
    fields: GivenFields,
    /// The rule flags, by the names under which they are given.
    rules: GivenRuleFlags,
}

impl Given {
    /// Returns the flags by the names of their fields.
    pub(crate) fn fields(&self) -> &GivenFields {
        &self.fields
    }

    /// Returns the rule flags that a `RolegateConfig` can override, for the log.
    pub(crate) fn rules(&self) -> &GivenRuleFlags {
        &self.rules
    }

    /// Returns all rule flags, for a process that ignores them.
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
        let fields = GivenFields::of(matches);
        let mut rules = GivenRuleFlags::default();
        for flag in RuleFlags::augment_args(Command::new("rules")).get_arguments() {
            let id = flag.get_id().as_str();
            let names = match id {
                id if ALWAYS.contains(&id) || !fields.has(id) => continue,
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

/// Returns the names under which a flag is given. Values from several sources may be on the command
/// line ([`crate::sources`]), so the variable is listed next to the flag.
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
            "--reserved-role=node",
            "--cluster-config=required",
            "--layer=grants=audit",
            "--namespace-restrictions",
        ]);
        assert_eq!(some.rules.base, ["--base-role-arn"]);
        assert_eq!(some.rules.default_role, [""; 0]);
        assert_eq!(some.rules.others, ["--namespace-restrictions", "--layer"]);
        assert!(some.fields.has("reserved_role") && !some.fields.has("default_role"));
    }
}
