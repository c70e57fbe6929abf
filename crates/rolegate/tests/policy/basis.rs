//! Tests of the rules behind answers, and of refusals to guess them.

use serde_json::json;

use crate::{BASE, GRANT, PODS, RESTRICTED, RULES, json, run};

const EXPLAIN: [&str; 6] = ["explain", "pod/api-0", "-n", "shop", "--rules", "rules"];

#[test]
fn every_answer_says_which_rules_it_rests_on() {
    let files = [
        ("rules/a.yaml", &*format!("{RULES}{PODS}")),
        ("rules/grant.yaml", GRANT),
        ("grant.yaml", GRANT),
    ];
    let now = "rules/a.yaml";
    for (command, pointer) in [
        (&EXPLAIN[..], "/rules"),
        (&["check", "-f", now, "--rules", "rules"], "/rules"),
        (
            &["simulate", "--rules", "grant.yaml", "-f", "rules"],
            "/rules/then",
        ),
    ] {
        let as_json = [command, &["-o", "json", BASE]].concat();
        let ran = run(&files, &as_json, "");
        let answer = json(&ran);
        let rules = answer.pointer(pointer).unwrap();
        let file = match pointer {
            "/rules" => "rules/grant.yaml:8",
            _ => "grant.yaml:8",
        };
        assert_eq!(
            rules["source"],
            json!({"kind": "RolegateConfig", "generation": null, "file": file}),
            "{command:?}"
        );
        assert_eq!(rules["baseRoleArn"], "arn:aws:iam::123456789012:role/");
        assert_eq!(rules["flags"], json!(["--base-role-arn"]));
        assert_eq!(
            rules["layers"],
            json!({"namespace": "enforce", "grants": "enforce", "rego": "off"})
        );
        let as_text = run(&files, &[command, &[BASE]].concat(), "");
        let says = format!("RolegateConfig cluster of {file}");
        assert!(as_text.out.contains(&says), "{command:?}: {}", as_text.out);
    }
    for (command, place) in [
        (&["suggest", "-f", "rules", BASE][..], "out"),
        (&["convert", "-f", "rules", BASE], "out"),
        (&["export", "--format=vap", "--rules", "rules", BASE], "err"),
        (
            &["check", "-f", now, "--rules", "rules", BASE, "-o", "junit"],
            "err",
        ),
    ] {
        let ran = run(&files, command, "");
        let text = if place == "out" { &ran.out } else { &ran.err };
        let says = "RolegateConfig cluster of rules/grant.yaml:8";
        assert!(text.contains(says), "{command:?}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn layers_are_not_guessed_where_no_cluster_is() {
    let files = [("rules/a.yaml", &*format!("{RULES}{PODS}"))];
    for command in [
        &EXPLAIN[..],
        &["check", "-f", "rules", "--rules", "rules"],
        &["simulate", "--rules", "rules", "-f", "rules"],
    ] {
        for flags in [&[][..], &[BASE]] {
            let ran = run(&files, &[command, flags].concat(), "");
            assert_eq!(ran.code, 1, "{command:?}: {}", ran.out);
            let says = "add the RolegateConfig to --rules";
            assert!(ran.err.contains(says), "{command:?}: {}", ran.err);
        }
        let ran = run(&files, &[command, &[BASE, RESTRICTED]].concat(), "");
        assert_ne!(ran.code, 1, "{command:?}: {}", ran.err);
    }
    // --offline requires files.
    assert_eq!(run(&files, &["explain", "pod/x", "--offline"], "").code, 64);
}

#[test]
fn a_flag_that_does_not_count_is_wrong_usage() {
    let test = "apiVersion: cli.rolegate.dev/v1alpha1\nkind: PolicyTest\nmetadata: {name: t}\nspec:\n  \
                rules: [../rules]\n  cases:\n  - name: plain\n    object: {apiVersion: v1, kind: Pod, \
                metadata: {name: x, namespace: shop}, spec: {containers: []}}\n    \
                expect: {verdict: allowed}\n";
    let files = [
        ("rules/a.yaml", &*format!("{RULES}{PODS}")),
        ("rules/grant.yaml", GRANT),
        ("tests/test.yaml", test),
    ];
    for command in [
        &EXPLAIN[..],
        &["check", "-f", "rules", "--rules", "rules"],
        &["simulate", "--rules", "rules", "-f", "rules"],
        &["suggest", "-f", "rules"],
        &["convert", "-f", "rules"],
        &["export", "--format=vap", "--rules", "rules"],
        &["test", "tests"],
    ] {
        assert_ne!(run(&files, command, "").code, 64, "{command:?}");
        for flag in [
            "--layer=grants=enforce",
            "--namespace-restrictions",
            "--namespace-restrictions-default=allow",
            "--policy-namespaces=x",
            "--agent-daemonset=x",
        ] {
            let ran = run(&files, &[command, &[BASE, flag]].concat(), "");
            assert_eq!(ran.code, 64, "{command:?} {flag}: {}{}", ran.out, ran.err);
            let name = flag.split('=').next().unwrap();
            assert!(ran.err.contains(name), "{command:?}: {}", ran.err);
        }
    }
}

#[test]
fn a_change_is_simulated_as_if_its_layers_were_enforced() {
    let config = |layers: &str| {
        format!(
            "---\napiVersion: rolegate.dev/v1alpha1\nkind: RolegateConfig\nmetadata: {{name: cluster}}\n\
             spec: {{layers: {layers}}}\n"
        )
    };
    let grant = GRANT.split_once("---\n").unwrap().0;
    for (layers, enforced) in [
        ("{namespace: enforce, grants: audit}", json!(["grants"])),
        ("{namespace: enforce}", json!(["grants"])),
        (
            "{namespace: audit, grants: audit}",
            json!(["namespace", "grants"]),
        ),
    ] {
        let now = format!("{RULES}{PODS}{}", config(layers));
        let files = [("now.yaml", &*now), ("grant.yaml", grant)];
        let simulate = ["simulate", "--rules", "grant.yaml", "-f", "now.yaml", BASE];
        let ran = run(&files, &[&simulate[..], &["-o", "json"]].concat(), "");
        assert_eq!(ran.code, 3, "{layers}: {}{}", ran.out, ran.err);
        let printed = json(&ran);
        assert_eq!(printed["newlyDenied"], json!([]), "{layers}");
        assert_eq!(printed["ifEnforced"]["layers"], enforced, "{layers}");
        let newly_denied = &printed["ifEnforced"]["newlyDenied"];
        assert_eq!(
            newly_denied[0]["pods"],
            json!(["front-0"]),
            "{layers}: {printed:#}"
        );
        let text = run(&files, &simulate, "").out;
        assert!(text.contains("were enforced\n"), "{text}");
        assert!(text.contains("lose their role: 1 pod"), "{text}");
    }
    // Nothing is proposed for a layer that is off, and nothing is left to enforce.
    let now = format!(
        "{RULES}{PODS}{}",
        config("{namespace: 'off', grants: enforce}")
    );
    let files = [("now.yaml", &*now), ("grant.yaml", grant)];
    let simulate = [
        "simulate",
        "--rules=grant.yaml",
        "-f=now.yaml",
        "-ojson",
        BASE,
    ];
    let ran = run(&files, &simulate, "");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(json(&ran)["ifEnforced"], serde_json::Value::Null);
}

#[test]
fn rules_that_cannot_be_used_fail_a_check() {
    let grant = "apiVersion: rolegate.dev/v1alpha1\nkind: RoleGrant\nmetadata: {name: everyone}\n\
                 spec: {roles: [reader], subjects: [{}]}\n";
    let policy = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: typo, namespace: opa, \
                  labels: {openpolicyagent.org/policy: rego}}\n\
                  data: {a.rego: 'package kubernetes.admission deny['}\n";
    let config = "apiVersion: rolegate.dev/v1alpha1\nkind: RolegateConfig\nmetadata: {name: cluster}\n\
                  spec: {baseRoleArn: x}\n";
    let fine = "apiVersion: v1\nkind: Namespace\nmetadata: {name: fine}\n";
    let files = [
        ("rules.yaml", RULES),
        ("fine.yaml", fine),
        ("grant.yaml", grant),
        ("policy.yaml", policy),
        ("config.yaml", config),
    ];
    let on = [BASE, "--layer=grants=enforce,rego=enforce"];
    for (name, says) in [
        ("grant.yaml", "RoleGrant everyone grants nothing"),
        ("policy.yaml", "ConfigMap opa/typo cannot be used"),
        ("config.yaml", "spec.baseRoleArn"),
    ] {
        let flags = if name == "config.yaml" { &[][..] } else { &on };
        let in_rules = [
            "check",
            "-f",
            "fine.yaml",
            "--rules",
            "rules.yaml",
            "--rules",
            name,
        ];
        let checked = [
            "check",
            "-f",
            name,
            "--rules",
            "rules.yaml",
            RESTRICTED,
            BASE,
        ];
        for arguments in [[&in_rules[..], flags].concat(), checked.to_vec()] {
            for quiet in [&[][..], &["--quiet"]] {
                let ran = run(&files, &[&arguments[..], quiet].concat(), "");
                assert_eq!(ran.code, 3, "{arguments:?}: {}{}", ran.out, ran.err);
                let text = format!("{}{}", ran.out, ran.err);
                assert!(text.contains(says), "{arguments:?}: {text}");
            }
        }
    }
    let fine = [
        "check",
        "-f",
        "fine.yaml",
        "--rules",
        "rules.yaml",
        RESTRICTED,
    ];
    assert_eq!(run(&files, &fine, "").code, 0);
}

#[test]
fn nothing_to_check_is_taken_where_it_is_allowed() {
    let files = [("rules.yaml", RULES)];
    let check = ["check", "-f", "-", "--rules", "rules.yaml", RESTRICTED];
    assert_eq!(run(&files, &check, "").code, 1);
    let ran = run(&files, &[&check[..], &["--allow-empty"]].concat(), "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("0 objects checked"), "{}", ran.out);
}
