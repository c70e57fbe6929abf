//! The published role allow list for OPA, in the form that its readers deploy. It must work
//! unchanged.

use std::collections::BTreeMap;

use rolegate_rego::{Kind, PolicySource, PolicyStatus, Syntax};
use serde_json::{Value, json};

use crate::helpers::{self, ADMISSION, evaluate, messages, namespace, store};

const POLICY: &str = include_str!("../fixtures/deployment-create-whitelist-role-ns.rego");

fn published(text: &str) -> PolicySource {
    PolicySource {
        namespace: "opa".into(),
        name: "deployment-create-whitelist-role-ns".into(),
        kind: Kind::Policy,
        points: ADMISSION,
        entries: BTreeMap::from([("main".into(), text.into())]),
    }
}

fn deployment(namespace: &str, role: Option<&str>, operation: &str) -> Value {
    let annotations = role.map_or(json!({}), |role| json!({"iam.amazonaws.com/role": role}));
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {
        "kind": {"group": "apps", "version": "v1", "kind": "Deployment"}, "operation": operation,
        "namespace": namespace,
        "object": {"metadata": {"name": "web"}, "spec": {"template": {"metadata": {"annotations": annotations}}}}}})
}

fn check(text: &str) {
    let mut store = store([published(text)]);
    store.replicate_all(
        "namespaces",
        &[
            namespace("payments", json!({})),
            namespace("search", json!({})),
        ],
    );
    let policies = store.snapshot();
    assert!(
        store.never_loaded().is_empty(),
        "{:?}\n{text}",
        store.never_loaded()
    );
    for (namespace, role, operation, allowed) in [
        ("payments", Some("payments-reader"), "CREATE", true),
        ("payments", Some("payments-writer"), "CREATE", true),
        ("search", Some("payments-reader"), "CREATE", false),
        ("unknown", Some("payments-reader"), "CREATE", false),
        ("search", None, "CREATE", true),
        ("search", Some("payments-reader"), "DELETE", true),
    ] {
        let findings = evaluate(&policies, &deployment(namespace, role, operation));
        assert_eq!(
            findings.is_allowed(),
            allowed,
            "{namespace} {role:?} {operation}: {findings:?}\n{text}"
        );
    }
    let findings = evaluate(&policies, &deployment("search", Some("admin"), "CREATE"));
    assert_eq!(
        messages(&findings),
        ["role admin is not on the list of namespace search"]
    );
    assert_eq!(findings.rule(), "opa/deployment-create-whitelist-role-ns");
}

#[test]
fn the_published_policy_runs_as_it_is() {
    check(POLICY);
    let store = store([published(POLICY)]);
    let statuses = store.statuses();
    let status = statuses.values().next().unwrap();
    let PolicyStatus::Ok {
        syntax, reads_time, ..
    } = status
    else {
        panic!("{status:?}");
    };
    assert_eq!(syntax.get("main"), Some(&Syntax::V0));
    assert!(!reads_time);
    assert_eq!(status.to_json()["status"], "ok");
}

#[test]
fn its_variants_run_too() {
    check(&POLICY.replace(" = \"", " == \""));
    check(&POLICY.replace(":=", "="));
    check(&POLICY.replace("roles[namespace][role]", "roles[namespace][_] == role"));
    check(&POLICY.replace("import data.kubernetes.namespaces\n", ""));
    let v1 = POLICY
        .replace("deny[msg] {", "deny contains msg if {")
        .replace(
            "allowed(namespace, role) {",
            "allowed(namespace, role) if {",
        )
        .replace(" = \"", " == \"");
    check(&v1);
    check(
        &format!("{}\n{v1}", "# v1 with an import")
            .replace("import data", "import rego.v1\nimport data"),
    );
}

#[test]
fn threat_11_the_published_policy_lets_a_bare_pod_pass_unless_pods_are_wrapped() {
    let pod = helpers::pod_review(
        json!({"iam.amazonaws.com/role": "admin"}),
        json!({"containers": []}),
    );
    let settings = |wrap_pods| rolegate_rego::Settings {
        wrap_pods,
        ..Default::default()
    };
    let mut store = rolegate_rego::PolicyStore::new(settings(false));
    store.apply(published(POLICY));
    assert!(evaluate(&store.snapshot(), &pod).is_allowed());
    store.configure(settings(true));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &pod)),
        ["role admin is not on the list of namespace team-a"]
    );
}
