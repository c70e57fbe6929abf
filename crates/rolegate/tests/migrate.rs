//! Tests of `rolegate migrate values` with the real binary.
#![cfg(test)]

use std::io::Write;
use std::process::{Command, Stdio};

/// The files of `crates/migrate/tests/values` whose translations `charts/rolegate/ci` holds, where
/// the checks of the chart render them.
const RENDERED: [&str; 5] = [
    "kube2iam-defaults",
    "kube2iam-cluster",
    "kube2iam-default-role",
    "kiam-defaults",
    "kiam-cluster",
];
/// The one value that the chart requires and the old charts cannot give.
const IMAGE: &str = "image: { repository: registry.example/rolegate }\n";

fn old_values(name: &str) -> String {
    format!(
        "{}/../migrate/tests/values/{name}.yaml",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn run(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .args(["migrate", "values"])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command may exit before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn translations_are_those_that_the_chart_renders() {
    for name in RENDERED {
        let (_, printed, text) = run(&["-f", &old_values(name)], "");
        let path = format!(
            "{}/../../charts/rolegate/ci/from-{name}-values.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let expected = format!("{printed}{IMAGE}");
        if std::env::var_os("UPDATE_TRANSLATIONS").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == expected,
            "{path} is old: run this test with UPDATE_TRANSLATIONS=1\n{text}"
        );
    }
}

#[test]
fn the_exit_code_says_whether_a_decision_is_needed() {
    let complete = old_values("kube2iam-cluster");
    let (code, yaml, text) = run(&["-f", &complete], "");
    assert_eq!(code, Some(0), "{text}");
    assert!(yaml.starts_with("# Values of rolegate's chart"), "{yaml}");
    assert!(
        text.contains("note: extraArgs.namespace-restrictions"),
        "{text}"
    );
    let (code, _, text) = run(&["-f", &old_values("kube2iam-default-role")], "");
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("needs a decision: extraArgs.auto-discover-default-role"),
        "{text}"
    );
    let (code, _, text) = run(&["-f", "/nowhere/values.yaml"], "");
    assert_eq!(code, Some(1), "{text}");
    for (arguments, input, reason) in [
        (&[][..], "", "--filename"),
        (&["-f", "-"], "extraArgs: {debug: true}", "--from"),
        (&["-f", "-", "-f", "-"], "host: {}", "standard input"),
        (&["-f", "-", "--from=kops"], "host: {}", "kube2iam"),
        (&["-f", "-", "-o", "text"], "host: {}", "yaml"),
    ] {
        let (code, _, text) = run(arguments, input);
        assert_eq!(code, Some(64), "{arguments:?}: {text}");
        assert!(text.contains(reason), "{arguments:?}: {text}");
    }
}

#[test]
fn files_are_merged_and_read_from_standard_input() {
    let base = old_values("kube2iam-cluster");
    let (_, json, text) = run(
        &["-f", &base, "-f", "-", "-o", "json"],
        "host: {interface: cali+}\nnovalue: 1\n",
    );
    let told: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(told["chart"], "kube2iam");
    assert_eq!(told["values"]["agent"]["hostInterface"], "cali+");
    assert_eq!(told["values"]["agent"]["appPort"], 8282);
    let notes = told["notes"].as_array().unwrap();
    assert!(
        notes
            .iter()
            .any(|note| note["from"] == "novalue" && note["kind"] == "action")
    );
    let (code, _, text) = run(
        &["-f", "-", "--from", "kube2iam"],
        "extraArgs: {verbose: true}",
    );
    assert_eq!(code, Some(3), "{text}");
}

#[test]
fn pods_of_the_default_role_come_from_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: PodList\nitems:\n\
         - {metadata: {name: plain, namespace: shop}, spec: {}}\n\
         - {metadata: {name: named, namespace: shop, annotations: {iam.amazonaws.com/role: reader}}, spec: {}}\n",
    )
    .unwrap();
    let pods = file.display().to_string();
    let (code, yaml, text) = run(
        &["-f", &old_values("kube2iam-default-role"), "--pods", &pods],
        "",
    );
    assert_eq!(code, Some(3), "{text}");
    assert!(
        yaml.contains("- shop/plain\n") && !yaml.contains("shop/named"),
        "{yaml}"
    );
    let (_, _, text) = run(
        &["-f", &old_values("kube2iam-cluster"), "--pods", &pods],
        "",
    );
    assert!(text.contains("--pods has no effect"), "{text}");
}

#[test]
fn errors_repeat_no_value() {
    for input in [
        "aws: {secret_key: hidden\nhost",
        "host: [hidden",
        "- hidden",
        "host: hidden: hidden",
    ] {
        let (code, out, text) = run(&["-f", "-"], input);
        assert_eq!(code, Some(1), "{text}");
        assert!(
            !text.contains("hidden") && out.is_empty(),
            "{input}: {out}{text}"
        );
    }
}
