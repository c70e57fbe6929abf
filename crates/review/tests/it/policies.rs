//! Policies evaluate whole reviews, in addition to the rules.

use jiff::Timestamp;
use parking_lot::Mutex;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_review::{Finding, Findings, Outcome, Review, ReviewPolicies, validate};
use serde_json::{Value, json};

use crate::world::{NOW, Rules};

/// Denies everything, and records the reviews.
#[derive(Default)]
struct Strict(Mutex<Vec<String>>);

impl ReviewPolicies for Strict {
    fn evaluate_review(&self, review: &str, _: Timestamp) -> Findings {
        self.0.lock().push(review.to_owned());
        Findings {
            denials: vec![Finding {
                policy: "opa/strict".into(),
                message: "no\u{1b}thing".into(),
            }],
            asked: 1,
        }
    }
}

fn with_mode(world: &str, mode: Mode) -> Rules {
    let mut rules = Rules::of(world);
    let mut config = (*rules.config).clone();
    config.modes[LayerId::Rego] = mode;
    rules.config = config.into();
    rules
}

fn review(kind: (&str, &str), operation: &str, namespace: &str, subresource: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": operation, "name": "app", "namespace": namespace,
            "subResource": subresource,
            "kind": {"group": kind.0, "version": "v1", "kind": kind.1},
            "object": {"metadata": {}}, "oldObject": {"metadata": {"labels": {"a": "b"}}},
            "userInfo": {"username": "root", "groups": ["system:masters"]},
        },
    })
}

fn ask(rules: &Rules, review: &Value) -> (Outcome, usize) {
    let body = review.to_string();
    let policies = Strict::default();
    let review = Review::parse(body.as_bytes()).unwrap();
    let outcome = validate(&rules.validation(Some(&policies)), &review, NOW);
    let asked = policies.0.into_inner();
    assert!(asked.iter().all(|asked| *asked == body), "the whole review");
    (outcome, asked.len())
}

#[test]
fn findings_are_faults_of_the_layer_rego() {
    let rules = with_mode("annotations", Mode::Enforce);
    for kind in [
        ("", "Pod"),
        ("example.com", "Widget"),
        ("apps", "Deployment"),
    ] {
        let (outcome, asked) = ask(&rules, &review(kind, "CREATE", "shop", ""));
        assert_eq!(
            (asked, outcome.asked, outcome.violations.len()),
            (1, 1, 1),
            "{kind:?}"
        );
        let violation = &outcome.violations[0];
        assert_eq!(
            (violation.denied_by, &*violation.rule),
            (LayerId::Rego.into(), "opa/strict")
        );
        assert_eq!(violation.reason, "no\\u{1b}thing");
    }
}

#[test]
fn audit_warns_and_off_does_not_ask() {
    let pod = review(("", "Pod"), "UPDATE", "shop", "");
    let (outcome, asked) = ask(&with_mode("annotations", Mode::Audit), &pod);
    assert!(outcome.is_allowed() && outcome.warnings.len() == 1 && asked == 1);
    let (outcome, asked) = ask(&with_mode("annotations", Mode::Off), &pod);
    assert!(outcome.is_allowed() && outcome.warnings.is_empty() && asked == 0);
}

#[test]
fn policies_skip_deletions_subresources_and_exempt_namespaces() {
    let rules = with_mode("guarded", Mode::Enforce);
    for (kind, operation, namespace, subresource, asks) in [
        (("", "Pod"), "DELETE", "shop", "", 0),
        (("", "Pod"), "CONNECT", "shop", "exec", 0),
        (("", "Pod"), "UPDATE", "shop", "status", 0),
        (("", "Pod"), "UPDATE", "shop", "ephemeralcontainers", 1),
        (("", "Pod"), "CREATE", "kube-system", "", 0),
        (("example.com", "Widget"), "CREATE", "kube-system", "", 0),
        (("", "ConfigMap"), "CREATE", "shop", "", 1),
        (("", "ConfigMap"), "CREATE", "kube-system", "", 0),
        (("", "Namespace"), "CREATE", "", "", 1),
    ] {
        let (_, asked) = ask(&rules, &review(kind, operation, namespace, subresource));
        assert_eq!(
            asked, asks,
            "{kind:?} {operation} {namespace} {subresource}"
        );
    }
}

#[test]
fn a_policy_that_refuses_everything_can_be_put_right() {
    let rules = with_mode("guarded", Mode::Enforce);
    for kind in [("", "ConfigMap"), ("rolegate.dev", "RolegateConfig")] {
        let (outcome, asked) = ask(&rules, &review(kind, "UPDATE", "opa", ""));
        assert!(outcome.is_allowed() && asked == 0, "{kind:?}");
    }
}

#[test]
fn later_policies_block_no_finalizer_or_controller() {
    let rules = with_mode("annotations", Mode::Enforce);
    let object = json!({
        "metadata": {"name": "app", "finalizers": ["a/b"], "resourceVersion": "1", "generation": 1,
            "managedFields": [{"manager": "a"}], "ownerReferences": [{"uid": "u"}]},
        "spec": {"replicas": 1, "template": {"spec": {"containers": []}}},
        "status": {"replicas": 1},
    });
    let asked = |user: &str, change: Value| {
        let mut update = review(("apps", "ReplicaSet"), "UPDATE", "shop", "");
        let mut new = object.clone();
        json_patch::merge(&mut new, &change);
        update["request"]["oldObject"] = object.clone();
        update["request"]["object"] = new;
        update["request"]["userInfo"] = json!({"username": user});
        ask(&rules, &update).1
    };
    let controller = "system:serviceaccount:kube-system:deployment-controller";
    for (change, jane, by_controller) in [
        (json!({}), 0, 0),
        (json!({"metadata": {"finalizers": null}}), 0, 0),
        (
            json!({"metadata": {"finalizers": [], "deletionTimestamp": "t",
                "deletionGracePeriodSeconds": 0, "resourceVersion": "2", "generation": 2,
                "managedFields": []}, "status": {"replicas": 2}}),
            0,
            0,
        ),
        (json!({"spec": {"replicas": 2}}), 1, 0),
        (json!({"metadata": {"ownerReferences": null}}), 1, 0),
        // An object that waits for its finalizers is still subject to policies.
        (
            json!({"metadata": {"deletionTimestamp": "t", "labels": {"a": "b"}}}),
            1,
            1,
        ),
        (
            json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}),
            1,
            1,
        ),
        (json!({"metadata": {"annotations": {"a": "b"}}}), 1, 1),
        (json!({"data": {"a": "b"}}), 1, 1),
    ] {
        assert_eq!(asked("jane", change.clone()), jane, "{change}");
        assert_eq!(asked(controller, change.clone()), by_controller, "{change}");
        let other = "system:serviceaccount:kube-system:other";
        assert_eq!(asked(other, change.clone()), jane, "{change}");
    }
    let mut odd = review(("apps", "ReplicaSet"), "UPDATE", "shop", "");
    for object in [json!(null), json!([])] {
        odd["request"]["oldObject"] = object.clone();
        odd["request"]["object"] = object;
        assert_eq!(ask(&rules, &odd).1, 1);
    }
}
