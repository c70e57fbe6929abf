//! Tests that the reference pages match the program's output.
#![cfg(test)]

use std::process::Command;

/// Commands with their own page in `docs/reference`.
const PAGES: [&str; 10] = [
    "agent",
    "broker",
    "redirect",
    "admission",
    "pod-identity-webhook",
    "controller",
    "policy",
    "migrate",
    "ledger",
    "doctor",
];

#[test]
fn reference_pages_are_up_to_date() {
    for command in PAGES {
        let printed = Command::new(env!("CARGO_BIN_EXE_rolegate"))
            .args(["reference", command])
            .env_clear()
            .output()
            .unwrap();
        let path = format!(
            "{}/../../docs/reference/{command}.md",
            env!("CARGO_MANIFEST_DIR")
        );
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        let again = format!("rolegate reference {command} > docs/reference/{command}.md");
        assert!(
            printed.stdout == page.as_bytes(),
            "{path} is old: run {again}"
        );
    }
}
