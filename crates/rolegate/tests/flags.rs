//! Tests of flags with several values in several sources, with the real binary.
#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Exit code for invalid usage.
const USAGE: Option<i32> = Some(64);
/// Exit code for a denial.
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
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), USAGE, "{arguments:?}: {stderr}");
            assert!(stderr.contains("less strict"), "{arguments:?}: {stderr}");
        }
    }
    // The file has the lowest precedence.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "namespace-restrictions: true\nmetadata-allow: [meta-data/ami-id]"
    )
    .unwrap();
    let config = format!("--config={}", file.path().display());
    for (opening, why) in [
        ("--layer=namespace=off", "less strict"),
        ("--metadata-allow=meta-data/.*", "in one source"),
    ] {
        let output = run(&[], &["agent", &config, opening]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
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
    let own = ("ROLEGATE_RESERVED_ROLE", "node-a");
    let on = "--layer=namespace=enforce";
    let (code, text) = check("node-a", &[], &["--reserved-role=node-b", on]);
    assert_eq!(code, Some(0), "the control: {text}");
    // Each source alone, and both together: values of both apply.
    for flags in [&[on][..], &["--reserved-role=node-b", on]] {
        let (code, text) = check("node-a", &[own], flags);
        assert_eq!(code, REFUSED, "{flags:?} {text}");
        assert!(text.contains("belongs to a node"), "{text}");
    }
    // A layer that only the environment enables is added to another one of the command line.
    let layers = ("ROLEGATE_LAYER", "namespace=enforce");
    let (code, text) = check("other", &[layers], &["--layer=grants=audit"]);
    assert_eq!(code, REFUSED, "{text}");
    assert!(text.contains("layer namespace"), "{text}");
}

/// A process that is killed at the end of the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processes, with flags that let them listen although their dependencies are missing.
const PROCESSES: [(&str, &[&str]); 4] = [
    (
        "agent",
        &[
            "--app-port=0",
            "--metrics-address=127.0.0.1:0",
            "--runtime-dir=",
            "--metadata-addr=127.0.0.1:9",
            "--node=a",
        ],
    ),
    (
        "broker",
        &[
            "--listen-address=127.0.0.1:0",
            "--metrics-address=127.0.0.1:0",
            "--ledger-address=127.0.0.1:0",
            "--metadata-addr=127.0.0.1:9",
        ],
    ),
    (
        "admission",
        &[
            "--listen-address=127.0.0.1:0",
            "--metrics-address=127.0.0.1:0",
        ],
    ),
    ("controller", &["--metrics-address=127.0.0.1:0"]),
];

/// The variables that the kubelet sets for Services `rolegate`, `rolegate-broker` and
/// `rolegate-metrics`.
const SERVICE_LINKS: [(&str, &str); 9] = [
    ("ROLEGATE_SERVICE_HOST", "10.0.0.1"),
    ("ROLEGATE_SERVICE_PORT_HTTPS", "443"),
    ("ROLEGATE_PORT", "tcp://10.0.0.1:443"),
    ("ROLEGATE_BROKER_SERVICE_HOST", "10.0.0.2"),
    ("ROLEGATE_BROKER_PORT", "tcp://10.0.0.2:9443"),
    ("ROLEGATE_BROKER_PORT_9443_TCP", "tcp://10.0.0.2:9443"),
    ("ROLEGATE_BROKER_PORT_9443_TCP_ADDR", "10.0.0.2"),
    ("ROLEGATE_BROKER_PORT_53_UDP_PROTO", "udp"),
    // The agent has a flag with this variable, and it excludes --metrics-address.
    ("ROLEGATE_METRICS_PORT", "tcp://10.0.0.3:9090"),
];

#[test]
fn a_misspelt_variable_ends_every_process() {
    for (process, flags) in PROCESSES {
        let arguments = [&[process][..], flags].concat();
        let output = run(&[("ROLEGATE_NAMESPACE_RESTRICTION", "true")], &arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{process}: {stderr}");
        let meant = "did you mean ROLEGATE_NAMESPACE_RESTRICTIONS?";
        assert!(stderr.contains(meant), "{process}: {stderr}");
    }
    let help = run(&[("ROLEGATE_X", "")], &["agent", "--help"]);
    assert!(help.status.success(), "{help:?}");
}

#[test]
fn variables_of_services_count_for_nothing() {
    for (process, flags) in PROCESSES {
        let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
            .arg(process)
            .args(flags)
            .arg("--api-server=http://127.0.0.1:9")
            .env_clear()
            .envs(SERVICE_LINKS)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut started = Started(child);
        let mut lines = BufReader::new(started.0.stderr.take().unwrap()).lines();
        let mut stderr = Vec::new();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| {
            stderr.push(line);
            stderr.iter().any(|line| line.contains("listening"))
        });
        assert!(listens, "{process}: {stderr:?}");
    }
    // A flag's variable with the value of a Service is ignored; one with a value of its own
    // applies.
    let port = |value| {
        let output = run(&[("ROLEGATE_APP_PORT", value)], &["agent", "--wait=1m"]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let stderr = port("tcp://10.0.0.1:80");
    assert!(stderr.contains("--wait"), "{stderr}");
    let stderr = port("http");
    assert!(stderr.contains("--app-port"), "{stderr}");
}

#[test]
fn manifests_turn_variables_of_services_off() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let mut templates = 0;
    for entry in std::fs::read_dir(deploy).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
        for document in documents {
            if let Some(pod) = document.pointer("/spec/template/spec") {
                let links = &pod["enableServiceLinks"];
                assert_eq!(
                    links,
                    false,
                    "{}: {}",
                    path.display(),
                    document["metadata"]["name"]
                );
                templates += 1;
            }
        }
    }
    assert!(templates >= 5, "{templates}");
}
