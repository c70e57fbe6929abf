//! Tests of `rolegate demo` with the real binary: its steps, its exit codes and its cleanup.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rolegate_devkit::{NODE_SECRET_ACCESS_KEY, NODE_SECRET_MARKER};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Names of the steps, in order.
const STEPS: [&str; 13] = [
    "without-rolegate",
    "allowed-role",
    "refused-role",
    "no-role",
    "node-role-wished",
    "node-credentials",
    "metadata-tokens",
    "role-shopping",
    "stolen-node",
    "right-taken-away",
    "rotation",
    "sts-down",
    "sts-back",
];

/// The demo without the developer's environment, killed on drop.
struct Demo(Child);

impl Demo {
    fn start(args: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
            .arg("demo")
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn run(args: &[&str]) -> Output {
        let mut demo = Self::start(args);
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        // The unread output is short, so it never fills its pipe.
        demo.0
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut stdout)
            .unwrap();
        demo.0
            .stderr
            .take()
            .unwrap()
            .read_to_end(&mut stderr)
            .unwrap();
        let status = demo.0.wait().unwrap();
        demo.is_gone();
        Output {
            status,
            stdout,
            stderr,
        }
    }

    /// Reads until a line contains `text`, then sends SIGINT. Returns the remaining output and the
    /// exit code.
    fn interrupt_at(mut self, text: &str) -> (String, Option<i32>) {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        assert!(
            lines.any(|line| line.contains(text)),
            "no line has {text:?}"
        );
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let rest: Vec<_> = lines.collect();
        let code = self.0.wait().unwrap().code();
        self.is_gone();
        (rest.join("\n"), code)
    }

    /// Asserts that none of its network namespaces exists.
    fn is_gone(&self) {
        let prefix = format!("rolegate-demo-{}-", self.0.id());
        let left: Vec<_> = Path::new("/run/netns")
            .read_dir()
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn people_see_every_step_go_well() {
    let output = Demo::run(&["--once", "--loopback"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let promised = format!("All {} steps succeeded.", STEPS.len());
    assert!(shown.contains(&promised), "{shown}");
    assert_eq!(shown.matches("    ✓ ").count(), STEPS.len(), "{shown}");
    assert!(shown.contains("curl --interface 127.1.0.1 "), "{shown}");
    // Without a terminal there is no colour; and no secret, and no log line.
    assert!(!shown.contains('\x1b'), "{shown}");
    assert!(!shown.contains(NODE_SECRET_MARKER), "{shown}");
    assert!(!shown.contains(NODE_SECRET_ACCESS_KEY), "{shown}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn machines_get_one_document() {
    let output = Demo::run(&["--once", "-o", "json"]);
    let shown = text(&output.stdout);
    let report: Value = serde_json::from_str(shown).unwrap();
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert_eq!(report["ok"], true, "{shown}");
    assert_eq!(report["try"], serde_json::json!([]));
    let steps = report["steps"].as_array().unwrap();
    let names: Vec<_> = steps
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, STEPS);
    for step in steps {
        assert_eq!(step["ok"], true, "{step}");
        for exchange in step["exchanges"].as_array().unwrap() {
            assert!(
                exchange["command"].as_str().unwrap().contains("curl "),
                "{exchange}"
            );
            assert!(exchange["status"].is_u64(), "{exchange}");
        }
    }
    assert!(!shown.contains(NODE_SECRET_MARKER), "{shown}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_step_that_goes_wrong_is_found_out() {
    // An administrator who opens user-data exposes the node's bootstrap secret.
    let args = [
        "--once",
        "--loopback",
        "-o",
        "json",
        "--",
        "--metadata-allow=user-data",
    ];
    let output = Demo::run(&args);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert_eq!(report["ok"], false);
    for step in report["steps"].as_array().unwrap() {
        assert_eq!(step["ok"], step["name"] != "node-credentials", "{step}");
    }
    assert!(
        !text(&output.stdout).contains(NODE_SECRET_MARKER),
        "{report}"
    );
}

#[test]
fn it_leaves_cleanly_at_ctrl_c_whenever_that_comes() {
    let (_, code) = Demo::start(&[]).interrupt_at("role that the namespace does not allow");
    assert_eq!(code, Some(130));
    let (rest, code) = Demo::start(&[]).interrupt_at("keeps running until Ctrl-C");
    assert_eq!(code, Some(0), "{rest}");
    assert!(rest.ends_with("The demo is over."), "{rest}");
}

#[test]
fn flags_that_the_agent_does_not_know_are_wrong_usage() {
    let output = Demo::run(&["--", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("--no-such-flag"));
}
