use super::*;
use crate::cli::definition;

/// Returns all commands that can be run, by name.
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

/// Returns the arguments to add to a command line, or the reason for its rejection.
fn merge(command: &Command, (line, variables, file): Places<'_>) -> Result<Vec<String>, String> {
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

/// Returns each command that has the flag, with its environment variable.
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
        ("reserved-role", ("a", "b", "c")),
        ("policy-namespaces", ("a", "b", "c")),
        ("replicate", ("v1/a", "v1/b", "v1/c")),
    ] {
        for (words, command, variable) in having(name) {
            let line = format!("--{name}={three}");
            let sources: Places<'_> = (&[&line], &[(&variable, two)], &[(name, one)]);
            let expected = [format!("--{name}={one}"), format!("--{name}={two}")];
            assert_eq!(merge(&command, sources).unwrap(), expected, "{words}");
            // Values of one source are not lost either.
            let alone: Places<'_> = (&[], &[(&variable, &format!("{one},{two}"))], &[]);
            assert_eq!(merge(&command, alone).unwrap(), expected, "{words}");
            let none: Places<'_> = (&["--", &line], &[(&variable, "")], &[]);
            assert!(merge(&command, none).unwrap().is_empty(), "{words}");
        }
    }
}

#[test]
fn permissive_lists_are_set_in_one_source() {
    for (words, command, variable) in having("metadata-allow") {
        for sources in [
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
            let error = merge(&command, sources).unwrap_err();
            assert!(error.contains("in one source"), "{words}: {error}");
        }
        let same: Places<'_> = (&[], &[(&variable, "a")], &[("metadata-allow", "a")]);
        assert_eq!(merge(&command, same).unwrap(), ["--metadata-allow=a"]);
    }
}

#[test]
fn layers_of_all_sources_apply_and_none_is_relaxed() {
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
            // Within one source the layer's own flag takes precedence.
            (
                (
                    &["--namespace-restrictions", "--layer=namespace=audit"],
                    &[],
                    &[],
                ),
                &[],
            ),
        ];
        for (sources, expected) in fine {
            assert_eq!(
                merge(&command, sources).unwrap(),
                expected,
                "{words} {sources:?}"
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
        for sources in refused {
            let error = merge(&command, sources).unwrap_err();
            assert!(
                error.contains("less strict"),
                "{words} {sources:?}: {error}"
            );
        }
    }
}
