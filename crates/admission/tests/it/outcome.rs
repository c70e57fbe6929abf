//! What is answered where the rules themselves are not there.

use rolegate_admission::outcome::refusal;
use rolegate_admission::{Fault, Outcome, Review, Unseen, judge};
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::Mode;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::selector::Selector;
use serde_json::{Value, json};

use crate::world::{NOW, Rules};

fn pod(namespace: &str, role: Option<&str>) -> Value {
    let annotations = role.map(|role| json!({"iam.amazonaws.com/role": role}));
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "name": "app", "namespace": namespace,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "object": {"metadata": {"annotations": annotations}},
            "userInfo": {"username": "jane"},
        },
    })
}

fn answer(rules: &Rules, review: &Value) -> Value {
    let body = review.to_string();
    let review = Review::parse(body.as_bytes()).unwrap();
    let outcome = judge(&rules.gate(None), &review, NOW);
    serde_json::from_slice(&outcome.answer(&review)).unwrap()
}

/// The API server drops an answer to another request.
#[test]
fn the_answer_repeats_the_uid_of_its_review() {
    let rules = Rules::of("layers");
    for (uid, role) in [("u-1", "shop-reader"), ("705ab4f5-6393", "admin")] {
        let mut review = pod("shop", Some(role));
        review["request"]["uid"] = uid.into();
        let answer = answer(&rules, &review);
        assert_eq!(answer["response"]["uid"], uid);
        assert_eq!(answer["response"]["allowed"], role == "shop-reader");
    }
}

/// The account of an owner's pods may be told elsewhere, so what depends on it waits for the pods.
#[test]
fn an_owner_without_an_account_is_told_nothing_about_grants() {
    let mut rules = Rules::of("layers");
    let tekton = rolegate_core::config::presets::preset("tekton").unwrap();
    std::sync::Arc::make_mut(&mut rules.config).templates = tekton;
    let layers = |account: Option<&str>| {
        let mut task = pod("shop", Some("admin"));
        let request = &mut task["request"];
        request["kind"] = json!({"group": "tekton.dev", "version": "v1", "kind": "Task"});
        request["object"]["spec"] = json!({"serviceAccountName": account});
        let faults = rules.judge(&task).faults;
        faults.iter().map(|fault| fault.layer).collect::<Vec<_>>()
    };
    assert_eq!(layers(None), ["namespace"]);
    assert_eq!(layers(Some("api")), ["namespace", "grants"]);
}

#[test]
fn threat_10_rules_that_are_missing_refuse_what_names_a_role_and_nothing_else() {
    let mut rules = Rules::of("layers");
    rules.set.missing = Some("the configuration is gone".into());
    let named = rules.judge(&pod("shop", Some("shop-reader")));
    assert_eq!(named.faults.len(), 1, "{named:?}");
    assert_eq!(named.faults[0].layer, "rules");
    assert!(named.message().contains("the configuration is gone"));
    let by_default = rules.judge(&pod("shop", None));
    assert_eq!(by_default.faults[0].layer, "rules");
    assert!(rules.judge(&pod("shop", Some(""))).is_allowed());
    let mut update = pod("shop", Some("shop-reader"));
    update["request"]["operation"] = "UPDATE".into();
    update["request"]["oldObject"] = update["request"]["object"].clone();
    assert!(rules.judge(&update).is_allowed());
    update["request"]["operation"] = "DELETE".into();
    assert!(rules.judge(&update).is_allowed());
    let mut none_by_default = Rules::of("annotations");
    none_by_default.set.missing = Some("the configuration is gone".into());
    assert!(none_by_default.judge(&pod("shop", None)).is_allowed());
    // A token that needs no role named is a role too, whatever the layers were.
    let mut token = pod("shop", None);
    token["request"]["object"]["spec"]["volumes"] = serde_json::json!([{ "name": "t", "projected": {
        "sources": [{ "serviceAccountToken": { "audience": "sts.amazonaws.com" } }] } }]);
    let refused = none_by_default.judge(&token);
    assert_eq!(refused.faults[0].layer, "rules", "{refused:?}");
    none_by_default.set.missing = None;
    assert!(none_by_default.judge(&token).is_allowed());
}

#[test]
fn a_namespace_that_was_not_seen_yet_is_waited_for() {
    let rules = Rules::of("annotations");
    let outcome = rules.judge(&pod("unheard-of", Some("shop-reader")));
    assert_eq!(
        outcome.undecided,
        Some(Unseen::Namespace("unheard-of".into()))
    );
    let answer = answer(&rules, &pod("unheard-of", Some("shop-reader")));
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 503);
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("unheard-of"), "{message}");
}

#[test]
fn a_pod_without_a_namespace_is_refused() {
    let outcome = Rules::of("annotations").judge(&pod("", Some("shop-reader")));
    assert_eq!(outcome.faults[0].path, "metadata.namespace");
}

#[test]
fn renamed_annotations_are_the_ones_that_count() {
    let mut rules = Rules::of("annotations");
    rules.keys.role = "example.com/role".into();
    rules.keys.allowed_roles = "example.com/allowed".into();
    assert!(rules.judge(&pod("shop", Some("admin"))).is_allowed());
    let mut renamed = pod("shop", None);
    renamed["request"]["object"] =
        json!({"metadata": {"annotations": {"example.com/role": "admin"}}});
    let outcome = rules.judge(&renamed);
    assert_eq!(
        outcome.faults[0].path,
        "metadata.annotations[example.com/role]"
    );
    let mut namespace = renamed;
    namespace["request"]["kind"]["kind"] = "Namespace".into();
    namespace["request"]["object"] =
        json!({"metadata": {"annotations": {"example.com/allowed": "[]"}}});
    let outcome = rules.judge(&namespace);
    assert_eq!(
        outcome.faults[0].path,
        "metadata.annotations[example.com/allowed]"
    );
}

/// An object of a kind, with a label. Rules are such as can be used.
fn usable(kind: &str) -> Value {
    let spec = match kind {
        "RoleGrant" => json!({"subjects": [{"namespaces": ["team-a"]}], "roles": ["reader"]}),
        _ => json!({}),
    };
    json!({
        "apiVersion": "rolegate.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "cluster", "labels": {"team": "blue"}},
        "spec": spec,
    })
}

#[test]
fn without_writers_of_rules_those_of_rbac_write_them() {
    let rules = Rules::of("annotations");
    let mut grant = pod("", None);
    grant["request"]["kind"] =
        json!({"group": "rolegate.dev", "version": "v1alpha1", "kind": "RoleGrant"});
    grant["request"]["object"] = usable("RoleGrant");
    assert!(rules.judge(&grant).is_allowed());
    grant["request"]["operation"] = "DELETE".into();
    assert!(rules.judge(&grant).is_allowed());
}

#[test]
fn tokens_are_let_through_where_grants_do_not_count() {
    let mut rules = Rules::of("grants");
    let mut token = pod("shop", None);
    token["request"]["kind"] =
        json!({"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"});
    token["request"]["subResource"] = "token".into();
    token["request"]["object"] = json!({"spec": {"audiences": ["sts.amazonaws.com"]}});
    assert!(!rules.judge(&token).is_allowed());
    let mut config = (*rules.config).clone();
    config.modes.grants = Mode::Audit;
    rules.config = config.into();
    let outcome = rules.judge(&token);
    assert!(outcome.is_allowed() && outcome.warnings.len() == 1);
}

#[test]
fn threat_25_warnings_and_messages_are_bounded_and_plain() {
    let fault = Fault::new(&"p".repeat(5000), "grants", "r\u{1b}", &"é\n".repeat(5000));
    let outcome = Outcome {
        faults: vec![fault.clone(); 20],
        warnings: vec![fault; 20],
        ..Outcome::default()
    };
    let warnings = outcome.warning_texts();
    assert!(warnings.iter().all(|warning| warning.len() <= 256));
    assert!(warnings.iter().map(String::len).sum::<usize>() <= 4096);
    let message = outcome.message();
    assert!(message.len() <= 4096 && !message.contains(['\n', '\u{1b}']));
}

#[test]
fn a_refusal_without_a_verdict_has_the_same_shape() {
    let answer: Value = serde_json::from_slice(&refusal("u-1", "no\nway")).unwrap();
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["message"], "no\\u{a}way");
}

#[test]
fn threat_07_a_label_cannot_be_planted_while_its_grant_is_broken() {
    let mut rules = Rules::of("grants");
    let selector = Selector {
        labels: [("tier", "gold")].into_iter().collect(),
        ..Selector::default()
    };
    let broken = Grant {
        name: "gold".into(),
        roles: vec!["arn:aws:iam::123456789012:role/gold".into()],
        subjects: vec![Subject {
            namespace_selector: Some(selector),
            ..Subject::default()
        }],
        unreadable: Some("a field of a later version".into()),
        ..Grant::default()
    };
    rules.grants = GrantsLayer::new([&broken], None).into();
    let mut namespace = pod("", None);
    namespace["request"]["kind"]["kind"] = "Namespace".into();
    namespace["request"]["object"] = json!({"metadata": {"labels": {"tier": "gold"}}});
    let outcome = rules.judge(&namespace);
    assert_eq!(outcome.faults[0].path, "metadata.labels[tier]");
}

/// Before the configuration is seen flags count, by which whoever has the right of RBAC writes.
#[test]
fn threat_10_what_is_guarded_waits_until_the_rules_were_seen() {
    let mut rules = Rules::of("annotations");
    rules.config = RuleConfig::default().into();
    rules.set.unseen = Some("the cluster's configuration has not been seen");
    for (group, kind, namespace) in [
        ("", "Namespace", ""),
        ("rolegate.dev", "RoleGrant", ""),
        ("rolegate.dev", "RolegateConfig", ""),
        ("", "ConfigMap", "opa"),
    ] {
        for operation in ["CREATE", "UPDATE", "DELETE"] {
            let mut review = pod(namespace, None);
            review["request"]["kind"] = json!({"group": group, "version": "v1", "kind": kind});
            review["request"]["operation"] = operation.into();
            review["request"]["object"] = usable(kind);
            review["request"]["oldObject"] = json!({"metadata": {}});
            let outcome = rules.judge(&review);
            assert!(outcome.undecided.is_some(), "{kind} {operation}");
            review["request"]["userInfo"]["groups"] = json!(["system:masters"]);
            assert!(rules.judge(&review).is_allowed(), "{kind} {operation}");
        }
    }
}
