//! Doors: the input that is documented, nothing else, and the same answer at gate and door.

use std::net::IpAddr;

use rolegate_core::arn::RoleArn;
use rolegate_core::key_values::KeyValues;
use rolegate_core::layer::{Ask, Layer as _, Verdict};
use rolegate_core::namespace::NamespaceRules;
use rolegate_core::workload::{Phase, Wish, Workload};
use rolegate_rego::{PolicyBook, RegoLayer, Settings};
use serde_json::json;

use crate::stage::{
    BOTH, DOOR, GATE, book, denies_all, error, judge, messages, now, pod_review, policy,
};

fn pod() -> Workload {
    let text = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<KeyValues>();
    Workload {
        namespace: "team-a".into(),
        name: "p".into(),
        uid: "u-1".into(),
        node: Some("node-1".into()),
        service_account: "app".into(),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish::default(),
        labels: text(&[("team", "a")]),
        annotations: text(&[
            ("iam.amazonaws.com/role", "admin"),
            ("example.com/secret", "x"),
        ]),
    }
}

fn verdict(book: &mut PolicyBook, pod: &Workload) -> Verdict {
    let rules = NamespaceRules::of_labels(KeyValues::default());
    RegoLayer::new(book.snapshot()).judge(&Ask {
        workload: pod,
        role: &RoleArn::parse("arn:aws:iam::123456789012:role/admin").unwrap(),
        is_default: false,
        namespace: &rules,
        now: now(),
    })
}

fn door(body: &str) -> String {
    format!("package kubernetes.admission\n\n{body}\n")
}

#[test]
fn a_door_policy_sees_the_documented_input() {
    let all = door(
        "deny[msg] {
    r := input.request
    false
    msg := r
}",
    );
    assert!(error(&book([policy("p", DOOR, &all)]), "p").contains("reads input.request,"));
    let rego = door(
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
    let mut book = book([
        policy("p", DOOR, &rego),
        policy("q", DOOR, &denies_all("more\\u0007")),
    ]);
    assert_eq!(book.never_loaded().len(), 0);
    assert_eq!(
        verdict(&mut book, &pod()),
        Verdict::deny("opa/p, opa/q", "all of it; more")
    );
    assert!(
        judge(&book.snapshot(), &pod_review(json!({}), json!({}))).is_allowed(),
        "not asked at the gate"
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
        let book = book([policy("p", DOOR, &door(body))]);
        let told = error(&book, "p");
        assert!(
            told.contains(path) && told.contains("opa/p: main.rego, line "),
            "{body}: {told}"
        );
        assert!(!book.never_loaded().is_empty());
        let gate = crate::stage::book([policy("p", GATE, &door(body))]);
        assert!(
            gate.never_loaded().is_empty(),
            "{body}: {:?}",
            gate.never_loaded()
        );
    }
}

#[test]
fn threat_11_a_helper_of_another_config_map_may_not_read_more_either() {
    let book = book([
        policy("p", DOOR, &door("deny[msg] { privileged; msg := 1 }")),
        policy(
            "helpers",
            GATE,
            &door(
                "privileged { input.request.object.spec.containers[_].securityContext.privileged }",
            ),
        ),
    ]);
    assert!(
        error(&book, "p").starts_with("opa/helpers: main.rego, line 3: reads "),
        "{}",
        error(&book, "p")
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
        let book = book([policy("p", BOTH, &door(body))]);
        assert!(
            book.never_loaded().is_empty(),
            "{body}: {:?}",
            book.never_loaded()
        );
    }
}

#[test]
fn gate_and_door_say_the_same_about_a_pod() {
    let rego = door(
        "deny[msg] { not input.request.object.metadata.annotations[\"example.com/secret\"]; msg := \"not kept\" }
deny[msg] { input.request.operation == \"CREATE\"; msg := input.request.object.spec.serviceAccountName }
deny[msg] { keys := [k | input.request.object.metadata.annotations[k]]; msg := sprintf(\"%v\", [keys]) }",
    );
    let kept = rego.replace(
        "[\"example.com/secret\"]",
        "[concat(\"/\", [\"example.com\", \"secret\"])]",
    );
    let mut book = book([policy("p", BOTH, &kept)]);
    assert!(book.never_loaded().is_empty(), "{:?}", book.never_loaded());
    let mut review = pod_review(
        json!({"iam.amazonaws.com/role": "admin", "example.com/secret": "x"}),
        json!({"serviceAccountName": "app", "containers": [{"image": "x"}]}),
    );
    review["request"]["operation"] = "UPDATE".into();
    let at_gate = judge(&book.snapshot(), &review).reason();
    assert_eq!(at_gate, "[\"iam.amazonaws.com/role\"]; app; not kept");
    assert_eq!(verdict(&mut book, &pod()), Verdict::deny("opa/p", at_gate));
}

#[test]
fn threat_11_a_bare_pod_is_asked_as_the_kinds_that_a_policy_names() {
    let rego = door(
        "kinds := {\"Deployment\", \"Job\"}
deny[msg] {
    kinds[input.request.kind.kind]
    role := input.request.object.spec.template.metadata.annotations[\"iam.amazonaws.com/role\"]
    role == \"admin\"
    msg := \"not admin\"
}",
    );
    let mut book = PolicyBook::new(Settings {
        wrap_pods: true,
        ..Settings::default()
    });
    book.apply(policy("p", BOTH, &rego));
    assert!(book.never_loaded().is_empty(), "{:?}", book.never_loaded());
    let review = |role: &str| pod_review(json!({"iam.amazonaws.com/role": role}), json!({}));
    assert_eq!(
        messages(&judge(&book.snapshot(), &review("admin"))),
        ["not admin"]
    );
    assert!(judge(&book.snapshot(), &review("reader")).is_allowed());
    assert_eq!(
        verdict(&mut book, &pod()),
        Verdict::deny("opa/p", "not admin")
    );
}

#[test]
fn the_gate_shows_as_much_of_an_annotation_as_doors_keep() {
    let rego = door(
        "deny[msg] { value := input.request.object.metadata.annotations[\"rolegate.dev/x\"]; msg := sprintf(\"%d\", [count(value)]) }",
    );
    let mut book = book([policy("p", BOTH, &rego)]);
    let review = pod_review(json!({"rolegate.dev/x": "x".repeat(5000)}), json!({}));
    assert_eq!(messages(&judge(&book.snapshot(), &review)), ["2048"]);
}

#[test]
fn without_policies_the_layer_allows() {
    assert_eq!(
        verdict(&mut book([]), &pod()),
        Verdict::allow("no policy denies")
    );
}
