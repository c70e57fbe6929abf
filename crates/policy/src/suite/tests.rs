use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::{LayerId, Mode};

use super::*;
use crate::fixtures::{NOW, grant, rules};
use rolegate_api::manifest::documents;

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: fine, annotations: {iam.amazonaws.com/role: reader}}
spec: {serviceAccountName: api, containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: admin, annotations: {iam.amazonaws.com/role: admin}}
spec: {serviceAccountName: api, containers: [{name: app, image: app}]}
";

/// Runs one case about `PODS`, given by the lines after its name.
fn run(mode: Mode, case: &str, old: &str) -> CaseResult {
    run_observed(&Observer::default(), mode, case, old)
}

fn run_observed(observer: &Observer, mode: Mode, case: &str, old: &str) -> CaseResult {
    let text = format!(
        "apiVersion: cli.rolegate.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{name: x}}\n\
         spec:\n  namespace: shop\n  cases:\n  - name: one\n    file: pods.yaml\n{case}"
    );
    let test = PolicyTest::read(&documents(&text).unwrap().documents[0]).unwrap();
    let fixture = rules(&[grant("shop", &["reader"], "shop", "api")], mode);
    let observed = observer.observed(&fixture.rules);
    let (config, keys) = (RuleConfig::default(), AnnotationKeys::default());
    let admission = ValidationRules {
        rules: &observed,
        config: &config,
        grants: &fixture.grants,
        keys: &keys,
        policies: None,
        accounts: None,
    };
    let pods = documents(PODS).unwrap().documents;
    let old = documents(old).unwrap().documents;
    let subjects = Subjects {
        objects: &pods,
        old: &old,
    };
    test.cases[0].run(&admission, subjects, str::to_owned, NOW)
}

fn failure(result: CaseResult) -> String {
    match result {
        CaseResult::Failed(complaints) => {
            let complaints: Vec<_> = complaints.into_iter().map(|one| one.message).collect();
            complaints.join("\n")
        }
        CaseResult::Errored(why) => format!("error: {why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cases_pass_only_with_the_expected_verdict() {
    let of = |name: &str, expect: &str| {
        format!("    select: {{name: {name}}}\n    expect: {{verdict: {expect}}}\n")
    };
    let enforce = Mode::Enforce;
    for (mode, name, verdict) in [
        (enforce, "fine", "allowed"),
        (enforce, "admin", "denied"),
        (Mode::Audit, "admin", "warned"),
        (Mode::Off, "admin", "allowed"),
    ] {
        for expected in ["allowed", "denied", "warned"] {
            let result = run(mode, &of(name, expected), "");
            if expected == verdict {
                assert_eq!(result, CaseResult::Passed, "{name} {verdict}");
            } else {
                let printed = failure(result);
                let part = format!("Pod shop/{name}: expected {expected}, but it is {verdict}");
                assert!(printed.starts_with(&part), "{printed}");
            }
        }
    }
    let printed = failure(run(enforce, &of("admin", "allowed"), ""));
    assert!(
        printed.contains("by layer grants, rule default deny: role "),
        "{printed}"
    );
}

#[test]
fn every_object_that_is_selected_must_be_as_expected() {
    let printed = failure(run(Mode::Enforce, "    expect: {verdict: denied}\n", ""));
    assert!(
        printed.starts_with("Pod shop/fine: expected denied") && !printed.contains("admin:"),
        "{printed}"
    );
    let none = "    select: {name: gone}\n    expect: {verdict: allowed}\n";
    assert!(failure(run(Mode::Enforce, none, "")).starts_with("error: no object is selected"));
}

#[test]
fn what_refuses_must_be_what_is_expected_to() {
    let by = |by: &str| {
        let case =
            format!("    select: {{name: admin}}\n    expect: {{verdict: denied, by: [{by}]}}\n");
        run(Mode::Enforce, &case, "")
    };
    for fine in [
        "{layer: grants}",
        "{rule: default deny}",
        "{layer: grants, rule: default deny, message: no RoleGrant}",
        "{path: 'metadata.annotations[iam.amazonaws.com/role]'}",
    ] {
        assert_eq!(by(fine), CaseResult::Passed, "{fine}");
    }
    for other in [
        "{layer: rego}",
        "{rule: deny}",
        "{layer: grants}, {layer: namespace}",
        "{layer: grants, message: something else}",
        "{path: spec}",
    ] {
        let printed = failure(by(other));
        assert!(
            printed.contains("denied as expected, but not by "),
            "{printed}"
        );
    }
    let refuser = Refuser {
        rule: Some("images.rego".into()),
        ..Refuser::default()
    };
    let is = |rule: &str| refuser.is(&Violation::new("", LayerId::Rego, rule, ""), &str::to_owned);
    assert!(is("images.rego") && is("policies/images.rego") && !is("other-images.rego"));
}

#[test]
fn an_update_needs_its_object_as_it_is() {
    let case = "    select: {name: admin}\n    operation: update\n    oldFile: old.yaml\n    \
                expect: {verdict: allowed}\n";
    // An unchanged request is not validated again.
    assert_eq!(run(Mode::Enforce, case, PODS), CaseResult::Passed);
    let printed = failure(run(Mode::Enforce, case, ""));
    assert!(
        printed.contains("not among the existing objects"),
        "{printed}"
    );
    let changed = PODS.replace("admin}", "other}");
    assert!(failure(run(Mode::Enforce, case, &changed)).contains("it is denied"));
}

#[test]
fn grants_that_allow_are_seen() {
    let observer = Observer::default();
    let case = "    select: {name: admin}\n    expect: {verdict: denied}\n";
    run_observed(&observer, Mode::Enforce, case, "");
    assert!(!observer.has_allowed("shop"));
    let case = "    select: {name: fine}\n    expect: {verdict: allowed}\n";
    run_observed(&observer, Mode::Enforce, case, "");
    assert!(observer.has_allowed("shop") && !observer.has_allowed("other"));
}
