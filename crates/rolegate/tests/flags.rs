//! Flags of several values in several places, as the real binary takes them.
#![cfg(test)]

use std::io::Write;
use std::process::{Command, Output};

/// Wrong usage.
const USAGE: Option<i32> = Some(64);
/// Something would be refused.
const REFUSED: Option<i32> = Some(3);

fn run(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn what_one_place_closes_no_other_opens() {
    let restricted = ("ROLEGATE_LAYER", "namespace=enforce");
    for command in [
        &["agent"][..],
        &["admission"],
        &["broker"],
        &["controller"],
        &["policy", "explain", "--role=x"],
        &["policy", "check", "-f=-"],
    ] {
        for opening in ["--layer=namespace=off", "--layer=namespace=audit"] {
            let arguments: Vec<_> = command.iter().copied().chain([opening]).collect();
            let output = run(&[restricted], &arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), USAGE, "{arguments:?}: {said}");
            assert!(said.contains("no other opens"), "{arguments:?}: {said}");
        }
    }
    // The file is the lowest place of all.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "namespace-restrictions: true\nmetadata-allow: [meta-data/ami-id]"
    )
    .unwrap();
    let config = format!("--config={}", file.path().display());
    for (opening, why) in [
        ("--layer=namespace=off", "no other opens"),
        ("--metadata-allow=meta-data/.*", "in one place"),
    ] {
        let output = run(&[], &["agent", &config, opening]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{said}");
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_several_places_close_is_closed() {
    let written = |text: &str| {
        let mut file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let kept = written(
        "\
apiVersion: v1
kind: Namespace
metadata: { name: shop, annotations: { iam.amazonaws.com/allowed-roles: '[\"node-a\"]' } }
",
    );
    let rules = format!("--rules={}", kept.path().display());
    let pod = "\
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, annotations: { iam.amazonaws.com/role: ROLE } }
spec: { containers: [] }
";
    let check = |role: &str, variables: &[(&str, &str)], flags: &[&str]| {
        let pod = written(&pod.replace("ROLE", role));
        let file = format!("--filename={}", pod.path().display());
        let base = "--base-role-arn=arn:aws:iam::123456789012:role/";
        let given = ["policy", "check", &file, &rules, base];
        let arguments: Vec<_> = given.iter().chain(flags).copied().collect();
        let output = run(variables, &arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let own = ("ROLEGATE_OWN_ROLE", "node-a");
    let on = "--layer=grants=audit";
    let (code, text) = check("node-a", &[], &["--own-role=node-b", on]);
    assert_eq!(code, Some(0), "the control: {text}");
    // Each place alone, and both together: none is forgotten.
    for flags in [&[on][..], &["--own-role=node-b", on]] {
        let (code, text) = check("node-a", &[own], flags);
        assert_eq!(code, REFUSED, "{flags:?} {text}");
        assert!(text.contains("role of the node"), "{text}");
    }
    // A layer that only the environment names is on beside another of the command line.
    let layers = ("ROLEGATE_LAYER", "namespace=enforce");
    let (code, text) = check("other", &[layers], &["--layer=grants=audit"]);
    assert_eq!(code, REFUSED, "{text}");
    assert!(text.contains("layer namespace"), "{text}");
}
