//! Tests of `rolegate broker` with the real binary: it must not start if it would request its own
//! credentials from agents.
#![cfg(test)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The log message at startup.
const STARTED: &str = "listening";
/// Exit code for invalid usage or environment.
const USAGE: i32 = 64;

struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a broker with only this environment. Returns its exit code and output if it did not
/// start.
fn refused(environment: &[(&str, &str)]) -> Option<(Option<i32>, String)> {
    let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .args(["broker", "--api-server=http://127.0.0.1:9"])
        .args([
            "--listen-address=127.0.0.1:0",
            "--metadata-addr=127.0.0.1:9",
        ])
        .args([
            "--metrics-address=127.0.0.1:0",
            "--ledger-address=127.0.0.1:0",
        ])
        .args(["--certificate=files", "--tls-cert=none", "--tls-key=none"])
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut broker = Broker(child);
    let mut stderr = String::new();
    for line in BufReader::new(broker.0.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains(STARTED) {
            return None;
        }
        stderr.push_str(&line);
        stderr.push('\n');
    }
    Some((broker.0.wait().unwrap().code(), stderr))
}

#[test]
fn threat_05_a_broker_that_would_ask_an_agent_for_its_credentials_does_not_start() {
    let pod = [("POD_IP", "10.1.0.5"), ("HOST_IP", "10.0.0.1")];
    let (code, stderr) = refused(&pod).expect("it starts");
    assert_eq!(code, Some(USAGE), "{stderr}");
    // The fix.
    for words in [
        "this broker is not on its host's network and has no credentials of its own",
        "set hostNetwork: true, or give it web identity (AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE)",
    ] {
        assert!(stderr.contains(words), "{stderr}");
    }
    // An SDK treats an empty variable as unset.
    let unset = [pod[0], pod[1], ("AWS_WEB_IDENTITY_TOKEN_FILE", "")];
    assert!(refused(&unset).is_some());
}

#[test]
fn a_broker_on_its_hosts_network_or_with_credentials_of_its_own_starts() {
    let host = [("POD_IP", "10.0.0.1"), ("HOST_IP", "10.0.0.1")];
    assert_eq!(refused(&host), None);
    for (name, value) in [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://169.254.170.23/v1/credentials",
        ),
        ("AWS_ACCESS_KEY_ID", "AKIATEST"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/etc/aws/credentials"),
        ("AWS_PROFILE", "broker"),
    ] {
        let own = [
            ("POD_IP", "10.1.0.5"),
            ("HOST_IP", "10.0.0.1"),
            (name, value),
        ];
        assert_eq!(refused(&own), None, "{name}");
    }
    // Outside of a pod nothing is redirected.
    assert_eq!(refused(&[]), None);
    assert_eq!(refused(&[("POD_IP", "10.1.0.5")]), None);
}
