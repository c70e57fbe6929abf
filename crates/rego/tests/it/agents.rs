//! Tests of policies at agents: only the documented input, and the same result as at admission.

use rolegate_core::arn::RoleArn;
use rolegate_core::labels::Labels;
use rolegate_core::layer::{AccessRequest, Layer as _, Verdict};
use rolegate_core::namespace::NamespaceRules;
use rolegate_core::test_util;
use rolegate_core::workload::Workload;
use rolegate_rego::{PolicyStore, RegoLayer, Settings};
use serde_json::json;

use crate::helpers::{
    ADMISSION, AGENT, BOTH, denies_all, error, evaluate, messages, now, pod_review, policy, store,
};

fn pod() -> Workload {
    let text = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
    Workload {
        namespace: "team-a".into(),
        name: "p".into(),
        uid: "u-1".into(),
        node: Some("node-1".into()),
        service_account: "app".into(),
        labels: text(&[("team", "a")]),
        annotations: text(&[
            ("iam.amazonaws.com/role", "admin"),
            ("example.com/secret", "x"),
        ]),
        ..test_util::pod(None)
    }
}

fn verdict(store: &mut PolicyStore, pod: &Workload) -> Verdict {
    let rules = NamespaceRules::from_labels(Labels::default());
    RegoLayer::new(store.snapshot()).evaluate(&AccessRequest {
        workload: pod,
        role: &RoleArn::parse("arn:aws:iam::123456789012:role/admin").unwrap(),
        is_default: false,
        namespace: &rules,
        now: now(),
    })
}

fn agent(body: &str) -> String {
    format!("package kubernetes.admission\n\n{body}\n")
}

#[test]
fn a_door_policy_sees_the_documented_input() {
    let all = agent(
        "deny[msg] {
    r := input.request
    false
    msg := r
}",
    );
    assert!(error(&store([policy("p", AGENT, &all)]), "p").contains("reads input.request,"));
    let rego = agent(
        "deny[msg] {
    input.kind == \"AdmissionReview\"
    input.request.kind == {\"group\": \"\", \"version\": \"v1\", \"kind\": \"Pod\"}
    input.request.operation == \"CREATE\"
    input.request.namespace == \"team-a\"
    input.request.name == \"p\"
    input.request.object.metadata.uid == \"u-1\"
    input.request.object.metadata.labels == {\"team\": \"a\"}
    input.request.object.metadata.annotations == {\"iam.amazonaws.com/role\": \"admin\"}
    input.request.object.spec.serviceAccountName == \"app\"
    input.request.object.spec.nodeName == \"node-1\"
    not input.request.object.spec.hostNetwork
    msg := \"all of it\"
}",
    );
    let mut store = store([
        policy("p", AGENT, &rego),
        policy("q", AGENT, &denies_all("more\\u0007")),
    ]);
    assert_eq!(store.never_loaded().len(), 0);
    assert_eq!(
        verdict(&mut store, &pod()),
        Verdict::deny("opa/p, opa/q", "all of it; more")
    );
    assert!(
        evaluate(&store.snapshot(), &pod_review(json!({}), json!({}))).is_allowed(),
        "not asked at the admission"
    );
}

#[test]
fn threat_11_a_door_policy_that_reads_more_is_refused_by_the_path() {
    for (body, path) in [
        ("deny[msg] { msg := input }", "reads input,"),
        (
            "deny[msg] { msg := input.request.object }",
            "reads input.request.object,",
        ),
        (
            "deny[msg] { input.request.object.spec.containers[_].image == \"x\"; msg := 1 }",
            "reads input.request.object.spec.containers[…],",
        ),
        (
            "deny[msg] { input.request.userInfo.username == \"x\"; msg := 1 }",
            "reads input.request.userInfo.username,",
        ),
        (
            "deny[msg] { input.request.object.metadata.annotations[\"example.com/x\"] == \"x\"; msg := 1 }",
            "annotations.example.com/x,",
        ),
        (
            "deny[msg] { input.request.object.metadata[x] == \"x\"; msg := 1 }",
            "reads input.request.object.metadata[…],",
        ),
        (
            "deny[msg] { helper; msg := 1 }\nhelper { o := input.request.object; o.spec.volumes }",
            "reads input.request.object,",
        ),
        (
            "deny[msg] { helper(input.request.oldObject); msg := 1 }\nhelper(x) { x == 1 }",
            "reads input.request.oldObject,",
        ),
        (
            "deny[msg] { x := [y | y := input.request.dryRun]; msg := x[0] }",
            "reads input.request.dryRun,",
        ),
        (
            "deny[msg] { walk(input, [p, v]); msg := v }",
            "reads input,",
        ),
        (
            "import input.request.object as o\ndeny[msg] { o.status.phase == \"x\"; msg := 1 }",
            "reads input.request.object.status.phase,",
        ),
        (
            "deny[msg] { input.request.object.spec.template.spec.nodeName == \"x\"; msg := 1 }",
            "reads input.request.object.spec.template.spec.nodeName,",
        ),
    ] {
        let store = store([policy("p", AGENT, &agent(body))]);
        let actual = error(&store, "p");
        assert!(
            actual.contains(path) && actual.contains("opa/p: main.rego, line "),
            "{body}: {actual}"
        );
        assert!(!store.never_loaded().is_empty());
        let admission = crate::helpers::store([policy("p", ADMISSION, &agent(body))]);
        assert!(
            admission.never_loaded().is_empty(),
            "{body}: {:?}",
            admission.never_loaded()
        );
    }
}

#[test]
fn threat_11_a_helper_of_another_config_map_may_not_read_more_either() {
    let store = store([
        policy("p", AGENT, &agent("deny[msg] { privileged; msg := 1 }")),
        policy(
            "helpers",
            ADMISSION,
            &agent(
                "privileged { input.request.object.spec.containers[_].securityContext.privileged }",
            ),
        ),
    ]);
    assert!(
        error(&store, "p").starts_with("opa/helpers: main.rego, line 3: reads "),
        "{}",
        error(&store, "p")
    );
}

#[test]
fn what_may_be_read_at_a_door_is_read() {
    for body in [
        "deny[msg] { input.request.object.metadata.labels[x] == \"a\"; msg := 1 }",
        "deny[msg] { input.request.object.metadata.annotations[x] == \"a\"; msg := 1 }",
        "deny[msg] { input.request.object.metadata.annotations[\"iam.amazonaws.com/role\"] == \"a\"; msg := 1 }",
        "deny[msg] { input.request.kind.kind == \"Pod\"; msg := 1 }",
        "import input.request as r\ndeny[msg] { r.namespace == \"a\"; r.object.spec.nodeName == \"b\"; msg := 1 }",
        "unrelated { input.request.userInfo }\ndeny[msg] { input[\"request\"][\"namespace\"] == \"a\"; msg := 1 }",
    ] {
        let store = store([policy("p", BOTH, &agent(body))]);
        assert!(
            store.never_loaded().is_empty(),
            "{body}: {:?}",
            store.never_loaded()
        );
    }
}

#[test]
fn admission_and_agents_agree_about_a_pod() {
    let rego = agent(
        "deny[msg] { not input.request.object.metadata.annotations[\"example.com/secret\"]; msg := \"not kept\" }
deny[msg] { input.request.operation == \"CREATE\"; msg := input.request.object.spec.serviceAccountName }
deny[msg] { keys := [k | input.request.object.metadata.annotations[k]]; msg := sprintf(\"%v\", [keys]) }",
    );
    let kept = rego.replace(
        "[\"example.com/secret\"]",
        "[concat(\"/\", [\"example.com\", \"secret\"])]",
    );
    let mut store = store([policy("p", BOTH, &kept)]);
    assert!(
        store.never_loaded().is_empty(),
        "{:?}",
        store.never_loaded()
    );
    let mut review = pod_review(
        json!({"iam.amazonaws.com/role": "admin", "example.com/secret": "x"}),
        json!({"serviceAccountName": "app", "containers": [{"image": "x"}]}),
    );
    review["request"]["operation"] = "UPDATE".into();
    let at_gate = evaluate(&store.snapshot(), &review).reason();
    assert_eq!(at_gate, "[\"iam.amazonaws.com/role\"]; app; not kept");
    assert_eq!(verdict(&mut store, &pod()), Verdict::deny("opa/p", at_gate));
}

#[test]
fn threat_11_a_bare_pod_is_asked_as_the_kinds_that_a_policy_names() {
    let rego = agent(
        "kinds := {\"Deployment\", \"Job\"}
deny[msg] {
    kinds[input.request.kind.kind]
    role := input.request.object.spec.template.metadata.annotations[\"iam.amazonaws.com/role\"]
    role == \"admin\"
    msg := \"not admin\"
}",
    );
    let mut store = PolicyStore::new(Settings {
        wrap_pods: true,
        ..Settings::default()
    });
    store.apply(policy("p", BOTH, &rego));
    assert!(
        store.never_loaded().is_empty(),
        "{:?}",
        store.never_loaded()
    );
    let review = |role: &str| pod_review(json!({"iam.amazonaws.com/role": role}), json!({}));
    assert_eq!(
        messages(&evaluate(&store.snapshot(), &review("admin"))),
        ["not admin"]
    );
    assert!(evaluate(&store.snapshot(), &review("reader")).is_allowed());
    assert_eq!(
        verdict(&mut store, &pod()),
        Verdict::deny("opa/p", "not admin")
    );
}

#[test]
fn admission_truncates_annotations_as_agents_do() {
    let rego = agent(
        "deny[msg] { value := input.request.object.metadata.annotations[\"rolegate.dev/x\"]; msg := sprintf(\"%d\", [count(value)]) }",
    );
    let mut store = store([policy("p", BOTH, &rego)]);
    let review = pod_review(json!({"rolegate.dev/x": "x".repeat(5000)}), json!({}));
    assert_eq!(messages(&evaluate(&store.snapshot(), &review)), ["2048"]);
}

#[test]
fn without_policies_the_layer_allows() {
    assert_eq!(
        verdict(&mut store([]), &pod()),
        Verdict::allow("no policy denies")
    );
}
