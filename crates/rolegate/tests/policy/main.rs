//! Tests of `rolegate policy` on files with the real binary.
#![cfg(test)]
#![allow(
    clippy::too_many_lines,
    reason = "a test is one scenario, from its start to its end"
)]

mod basis;
mod check;
mod context;
mod pods;
mod running;
mod suites;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

const BASE: &str = "--base-role-arn=arn:aws:iam::123456789012:role/";

/// Enables layer `namespace`, if there is no configuration.
const RESTRICTED: &str = "--namespace-restrictions";

const RULES: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations:
    iam.amazonaws.com/allowed-roles: '[\"reader\", \"shop-*\"]'
---
apiVersion: v1
kind: Namespace
metadata:
  name: web
  annotations:
    iam.amazonaws.com/permitted: web-.*
---
apiVersion: v1
kind: Namespace
metadata:
  name: odd
  annotations:
    iam.amazonaws.com/permitted: odd-[a-z]+
";

const PODS: &str = "\
---
apiVersion: v1
kind: Pod
metadata:
  name: api-0
  namespace: shop
  uid: u1
  annotations:
    iam.amazonaws.com/role: reader
spec:
  serviceAccountName: api
  containers: [{name: app, image: app}]
status: {phase: Running}
---
apiVersion: v1
kind: Pod
metadata:
  name: front-0
  namespace: web
  uid: u2
  annotations:
    iam.amazonaws.com/role: web-front
    iam.amazonaws.com/external-id: customer-a
spec:
  containers: [{name: app, image: app}]
status: {phase: Running}
";

const GRANT: &str = "\
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: {name: shop}
spec:
  roles: [reader]
  subjects: [{namespaces: [shop], serviceAccounts: [api]}]
---
apiVersion: rolegate.dev/v1alpha1
kind: RolegateConfig
metadata: {name: cluster}
spec:
  layers: {namespace: enforce, grants: enforce}
";

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `rolegate policy` in a directory with `files`, without an environment.
fn run(files: &[(&str, &str)], arguments: &[&str], input: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run_in(folder.path(), arguments, input)
}

fn run_in(folder: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .arg("policy")
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that rejects its flags reads nothing.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}{}", ran.out, ran.err))
}

#[test]
fn a_pod_is_explained_with_its_session_or_with_what_it_lacks() {
    let files = [
        ("rules/a.yaml", RULES),
        ("rules/b.yml", PODS),
        ("grant.yaml", GRANT),
    ];
    let fine = [
        "explain",
        "pod/api-0",
        "-n",
        "shop",
        "--rules",
        "rules",
        BASE,
        RESTRICTED,
    ];
    let ran = run(&files, &fine, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("allowed") && ran.out.contains("shop.api"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains('\x1b'), "colours without a terminal");

    let mut refused = vec![
        "explain", "--role", "shop-db", "-n", "shop", "-o", "json", BASE,
    ];
    refused.extend(["--rules", "rules", "--rules", "grant.yaml"]);
    let ran = run(&files, &refused, "");
    assert_eq!(ran.code, 3, "{}", ran.err);
    let printed = json(&ran);
    assert_eq!(printed["decision"], "denied");
    assert_eq!(printed["denial"]["layer"], "grants");
    assert_eq!(printed["grant"]["spec"]["roles"][0], "shop-db");

    // The reported missing grant is the missing one.
    let grant = printed["grant"].to_string();
    let mut files = files.to_vec();
    files.push(("rules/missing.json", &grant));
    let ran = run(&files, &refused, "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

#[test]
fn policies_at_admission_deny_a_hypothetical_pod() {
    let policy = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: labels, namespace: opa, labels: {openpolicyagent.org/policy: rego}}
data:
  labels.rego: |
    package kubernetes.admission
    deny[msg] {
      input.request.object.metadata.labels.tier == \"bad\"
      msg := \"no such tier\"
    }
";
    let files = [("rules/a.yaml", RULES), ("rules/policy.yaml", policy)];
    let explain = |label| {
        let arguments = [
            "explain",
            "--role=reader",
            "-n=shop",
            "--rules=rules",
            BASE,
            "--layer=namespace=enforce,rego=enforce",
            label,
            "-o=json",
        ];
        run(&files, &arguments, "")
    };
    let fine = explain("--label=tier=good");
    assert_eq!(fine.code, 0, "{}{}", fine.out, fine.err);
    assert_eq!(json(&fine)["policies"][0]["name"], "opa/labels");
    let refused = explain("--label=tier=bad");
    assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
    assert_eq!(json(&refused)["admission"]["reason"], "no such tier");
}

#[test]
fn manifests_are_checked_with_their_lines() {
    let manifest = "\
# Source: shop/templates/api.yaml
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  template:
    metadata:
      annotations:
        iam.amazonaws.com/role: admin
    spec:
      containers: [{name: app, image: app}]
";
    let files = [("rules.yaml", RULES)];
    let check = |output, input: &str| {
        let arguments = [
            "check",
            "-f",
            "-",
            "--rules",
            "rules.yaml",
            "-o",
            output,
            BASE,
            RESTRICTED,
        ];
        run(&files, &arguments, input)
    };
    let ran = check("json", manifest);
    assert_eq!(ran.code, 3, "{}", ran.err);
    let finding = &json(&ran)["findings"][0];
    assert_eq!(finding["line"], 9);
    assert_eq!(finding["layer"], "namespace");
    assert_eq!(finding["template"], "shop/templates/api.yaml");
    let ran = check("github", manifest);
    assert!(
        ran.out.starts_with("::error file=-,line=9,title="),
        "{}",
        ran.out
    );
    let ran = check("sarif", manifest);
    assert_eq!(json(&ran)["runs"][0]["results"][0]["level"], "error");
    let fine = manifest.replace("admin", "shop-api");
    let ran = check("text", &fine);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let (answer, rules) = ran.out.split_once("\nrules in force\n").unwrap();
    assert_eq!(answer, "1 object checked, none would be denied\n");
    assert!(rules.contains("flags of this command"), "{rules}");
    assert!(
        rules.contains("namespace=enforce grants=off rego=off"),
        "{rules}"
    );
}

#[test]
fn nobody_allows_himself_what_he_asks_for() {
    let manifest = "\
apiVersion: v1
kind: Namespace
metadata:
  name: mine
  annotations:
    iam.amazonaws.com/allowed-roles: '[\"*\"]'
---
apiVersion: v1
kind: Pod
metadata:
  name: x
  namespace: shop
  annotations: {iam.amazonaws.com/role: admin}
spec:
  containers: [{name: app, image: app}]
---
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata: {name: mine}
spec:
  roles: ['*']
  subjects: [{namespaces: ['*']}]
";
    let arguments = [
        "check",
        "-f",
        "-",
        "--rules",
        "rules.yaml",
        "-o",
        "json",
        BASE,
        RESTRICTED,
    ];
    let ran = run(&[("rules.yaml", RULES)], &arguments, manifest);
    assert_eq!(ran.code, 3, "{}", ran.err);
    let printed = json(&ran);
    let names: Vec<_> = printed["findings"].as_array().unwrap().iter().collect();
    let of = |name: &str| names.iter().any(|finding| finding["name"] == name);
    assert!(of("mine") && of("x"), "{printed:#}");
}

#[test]
fn annotations_are_converted_or_told() {
    let ran = run(&[("n.yaml", RULES)], &["convert", "-f", "n.yaml", BASE], "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("- shop-*") && ran.out.contains("- web-*"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("# note: ") && ran.err.contains("has no glob"),
        "{}",
        ran.err
    );
    assert_eq!(ran.out.matches("kind: RoleGrant").count(), 2);
}

#[test]
fn rules_are_exported() {
    let files = [("rules.yaml", &*format!("{RULES}---\n{GRANT}"))];
    for (format, part) in [
        ("vap", "ValidatingAdmissionPolicy"),
        ("webhook", "ValidatingWebhookConfiguration"),
        ("crds", "rolegrants.rolegate.dev"),
    ] {
        let arguments = ["export", "--format", format, "--rules", "rules.yaml", BASE];
        let ran = run(&files, &arguments, "");
        assert_eq!(ran.code, 0, "{format}: {}", ran.err);
        assert!(ran.out.contains(part), "{format}");
    }
}

#[test]
fn what_is_wrong_is_told_with_file_line_and_what_to_do() {
    let bomb = "apiVersion: v1\nkind: Pod\na: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(1..12)
            .map(|n| {
                let (name, before) = (
                    format!("a{n}"),
                    if n == 1 {
                        "a".into()
                    } else {
                        format!("a{}", n - 1)
                    },
                );
                let list = vec![format!("*{before}"); 9].join(",");
                format!("{name}: &{name} [{list}]\n")
            })
            .collect::<String>();
    let wrong_grant = "---\napiVersion: rolegate.dev/v1alpha1\nkind: RoleGrant\nmetadata: {name: x}\nspec: {rolez: []}\n";
    let files = [
        ("rules.yaml", RULES),
        ("bad/broken.yaml", "a: [\n"),
        ("none.yaml", "# nothing\nreplicas: 1\n"),
        ("bomb.yaml", bomb.as_str()),
        ("grant.yaml", wrong_grant),
        ("empty/readme.md", "x"),
    ];
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["check", "-f", "bad", "--rules", "rules.yaml"],
            1,
            "bad/broken.yaml:",
        ),
        (
            &["check", "-f", "none.yaml", "--rules", "rules.yaml"],
            1,
            "none.yaml:2: the document is not a Kubernetes object",
        ),
        (
            &["check", "-f", "bomb.yaml", "--rules", "rules.yaml"],
            1,
            "bomb.yaml:",
        ),
        (
            &["check", "-f", "empty", "--rules", "rules.yaml"],
            1,
            "no file that ends in",
        ),
        (
            &["check", "-f", "gone.yaml", "--rules", "rules.yaml"],
            1,
            "gone.yaml",
        ),
        (
            &[
                "check",
                "-f",
                "rules.yaml",
                "--rules",
                "grant.yaml",
                RESTRICTED,
            ],
            3,
            "grant.yaml:2: RoleGrant x",
        ),
        (&["check", "-f", "-", "--rules", "-"], 64, "standard input"),
        (
            &["explain", "service/x", "--rules", "rules.yaml"],
            64,
            "service does not create pods",
        ),
        (
            &["explain", "deployment/x", "--rules", "rules.yaml"],
            1,
            "cannot find deployment x",
        ),
        (
            &["explain", "pod/x", "--rules", "rules.yaml"],
            1,
            "cannot find pod x",
        ),
        (&["explain"], 64, "required"),
        (
            &["suggest", "-f", "rules.yaml", "--base-role-arn=x"],
            64,
            "--base-role-arn",
        ),
        (
            &["explain", "--role", "r", "-n", "*", "--rules", "rules.yaml"],
            64,
            "lower-case",
        ),
    ];
    for (arguments, code, part) in cases {
        let ran = run(&files, arguments, "");
        assert_eq!(ran.code, *code, "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(part), "{arguments:?}: {}", ran.err);
        assert!(!ran.err.contains("panicked"), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn help_teaches_by_examples() {
    for command in [
        "explain", "check", "test", "simulate", "suggest", "convert", "adopt", "export",
    ] {
        let ran = run(&[], &[command, "--help"], "");
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("Examples:"), "{command}");
        let (before, _) = ran.out.split_once("Usage:").unwrap();
        let lines = before.trim().lines().count();
        assert!(lines > 1, "{command} lacks its long text");
        assert!(
            ran.out.contains(&format!("rolegate policy {command}")),
            "{command}"
        );
    }
}
