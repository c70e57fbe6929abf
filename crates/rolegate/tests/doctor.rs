//! Tests of `rolegate doctor` with the real binary: errors, formats, and the node that runs it.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

const USAGE: Option<i32> = Some(64);
const FINDINGS: Option<i32> = Some(3);

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.arg("doctor").args(arguments).env_clear();
    let output = command.stdin(Stdio::null()).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Returns an address at which no process listens.
fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Serves one response, and returns the address.
fn served(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let length = body.len();
        let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json";
        let _ = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    });
    address
}

/// Returns a kubeconfig for the API server at `address`.
fn kubeconfig(address: SocketAddr) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, users: [{{name: u, user: {{}}}}],\n\
          clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}],\n\
          contexts: [{{name: c, context: {{cluster: k, user: u}}}}]}}"
    );
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn an_api_server_that_does_not_respond_is_an_error() {
    let address = closed();
    let file = kubeconfig(address);
    let path = file.path().to_str().unwrap();
    for more in [&[][..], &["--pod", "shop/api-0"]] {
        let (code, out, err) = run(&[&["--kubeconfig", path][..], more].concat());
        assert_eq!((code, &*out), (Some(1), ""), "{err}");
        let expected = format!("cannot reach the API server at http://{address}");
        assert!(err.contains(&expected), "{err}");
        assert!(err.contains("--context"), "{err}");
    }
    let (code, _, err) = run(&["--kubeconfig", "/nonexistent"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("cannot use kubeconfig /nonexistent"), "{err}");
}

#[test]
fn wrong_flags_are_usage_errors() {
    for arguments in [
        &["--pod", "a/b/c"][..],
        &["--pod", "a/b", "-n", "c"],
        &["-n", "c"],
        &["--timeout", "0s"],
        &["-o", "sarif"],
        &["node", "--pod", "a/b"],
    ] {
        let (code, _, err) = run(arguments);
        assert_eq!(code, USAGE, "{arguments:?}: {err}");
    }
}

#[test]
fn the_help_refers_to_shared_flags_once() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert_eq!(help.matches("rolegate options").count(), 1, "{help}");
    assert!(
        help.contains("--pod") && !help.contains("--kubeconfig"),
        "{help}"
    );
}

/// Examines this machine with directories and addresses of the test.
fn node(agent: SocketAddr, output: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let dirs = [
        "--netns-dir",
        folder,
        "--cni-conf-dir",
        folder,
        "--cni-results-dir",
        folder,
    ];
    let (agent, silent) = (agent.to_string(), closed().to_string());
    let addresses = [
        "node",
        "--metrics-address",
        &agent,
        "--metadata-addr",
        &silent,
    ];
    let (code, out, err) = run(&[&addresses[..], &dirs, &["-o", output]].concat());
    assert_eq!(err, "");
    (code, out)
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn a_node_names_its_agents_failing_conditions() {
    let body = r#"{"ready": false, "waiting": [], "failing": {"redirect": "nft is gone"},
        "noted": {"layers": "all are off"}, "ok": ["rules"]}"#;
    let (code, out) = node(served(body), "json");
    assert_eq!(code, FINDINGS, "{out}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let agent = check(&report, "agent");
    assert_eq!(agent["status"], "problem");
    assert_eq!(
        agent["findings"][0]["message"],
        "agent: redirect: nft is gone"
    );
    assert_eq!(agent["findings"][1]["status"], "warning");
    assert_eq!(check(&report, "metadata-service")["status"], "problem");
    for name in ["metadata-options", "pods", "identity", "cni-results"] {
        assert_eq!(check(&report, name)["status"], "notChecked", "{name}");
    }
}

#[test]
fn a_node_without_an_agent_says_so_in_every_format() {
    let (code, out) = node(closed(), "text");
    assert_eq!(code, FINDINGS, "{out}");
    assert!(out.contains("no agent listens at 127.0.0.1:"), "{out}");
    assert!(!out.contains('\u{1b}'), "colours without a terminal: {out}");
    let (_, names) = node(closed(), "name");
    assert!(names.lines().any(|name| name == "agent"), "{names}");
    let (_, junit) = node(closed(), "junit");
    assert!(junit.contains("<testcase name=\"agent\""), "{junit}");
    assert!(junit.contains("<skipped"), "{junit}");
}
