//! Flags of several values in several places, as the real binary takes them.
#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

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
    let on = "--layer=namespace=enforce";
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

/// A process that ends with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each process, with flags by which it listens though nothing else is there.
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

/// What the kubelet adds for Services `rolegate`, `rolegate-broker` and `rolegate-metrics`.
const SERVICE_LINKS: [(&str, &str); 9] = [
    ("ROLEGATE_SERVICE_HOST", "10.0.0.1"),
    ("ROLEGATE_SERVICE_PORT_HTTPS", "443"),
    ("ROLEGATE_PORT", "tcp://10.0.0.1:443"),
    ("ROLEGATE_BROKER_SERVICE_HOST", "10.0.0.2"),
    ("ROLEGATE_BROKER_PORT", "tcp://10.0.0.2:9443"),
    ("ROLEGATE_BROKER_PORT_9443_TCP", "tcp://10.0.0.2:9443"),
    ("ROLEGATE_BROKER_PORT_9443_TCP_ADDR", "10.0.0.2"),
    ("ROLEGATE_BROKER_PORT_53_UDP_PROTO", "udp"),
    // The agent has a flag of this variable, and it excludes --metrics-address.
    ("ROLEGATE_METRICS_PORT", "tcp://10.0.0.3:9090"),
];

#[test]
fn a_misspelt_variable_ends_every_process() {
    for (process, flags) in PROCESSES {
        let arguments = [&[process][..], flags].concat();
        let output = run(&[("ROLEGATE_NAMESPACE_RESTRICTION", "true")], &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), USAGE, "{process}: {said}");
        let meant = "did you mean ROLEGATE_NAMESPACE_RESTRICTIONS?";
        assert!(said.contains(meant), "{process}: {said}");
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
        let mut said = Vec::new();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| {
            said.push(line);
            said.iter().any(|line| line.contains("listening"))
        });
        assert!(listens, "{process}: {said:?}");
    }
    // A flag's variable with the value of a Service is not the flag's, one with a value of its own is.
    let port = |value| {
        let output = run(&[("ROLEGATE_APP_PORT", value)], &["agent", "--wait=1m"]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = port("tcp://10.0.0.1:80");
    assert!(said.contains("--wait"), "{said}");
    let said = port("http");
    assert!(said.contains("--app-port"), "{said}");
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
