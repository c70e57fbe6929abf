//! Responses without synced rules.

use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::decision::NotSynced;
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::selector::Selector;
use rolegate_review::admission_review::ReviewVersion;
use rolegate_review::outcome::refusal;
use rolegate_review::{Outcome, Review, Undecided, Violation, ViolationSource, validate};
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
    let outcome = validate(&rules.validation(None), &review, NOW);
    serde_json::from_slice(&outcome.answer(&review)).unwrap()
}

/// The API server drops a response to another request.
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

/// The account of an owner's pods may be set elsewhere, so decisions that depend on it wait for the
/// pods.
#[test]
fn an_owner_without_an_account_is_not_checked_against_grants() {
    let mut rules = Rules::of("layers");
    let tekton = rolegate_core::config::presets::preset("tekton").unwrap();
    std::sync::Arc::make_mut(&mut rules.config).templates = tekton;
    let layers = |account: Option<&str>| {
        let mut task = pod("shop", Some("admin"));
        let request = &mut task["request"];
        request["kind"] = json!({"group": "tekton.dev", "version": "v1", "kind": "Task"});
        request["object"]["spec"] = json!({"serviceAccountName": account});
        let violations = rules.validate(&task).violations;
        violations
            .iter()
            .map(|violation| violation.denied_by)
            .collect::<Vec<_>>()
    };
    assert_eq!(layers(None), [LayerId::Namespace.into()]);
    assert_eq!(
        layers(Some("api")),
        [LayerId::Namespace.into(), LayerId::Grants.into()]
    );
}

#[test]
fn threat_10_rules_that_are_missing_refuse_what_names_a_role_and_nothing_else() {
    let mut rules = Rules::of("layers");
    rules.set.missing = Some("the configuration is gone".into());
    let named = rules.validate(&pod("shop", Some("shop-reader")));
    assert_eq!(named.violations.len(), 1, "{named:?}");
    assert_eq!(named.violations[0].denied_by, ViolationSource::RULES);
    assert!(named.message().contains("the configuration is gone"));
    let by_default = rules.validate(&pod("shop", None));
    assert_eq!(by_default.violations[0].denied_by, ViolationSource::RULES);
    assert!(rules.validate(&pod("shop", Some(""))).is_allowed());
    let mut update = pod("shop", Some("shop-reader"));
    update["request"]["operation"] = "UPDATE".into();
    update["request"]["oldObject"] = update["request"]["object"].clone();
    assert!(rules.validate(&update).is_allowed());
    update["request"]["operation"] = "DELETE".into();
    assert!(rules.validate(&update).is_allowed());
    let mut none_by_default = Rules::of("annotations");
    none_by_default.set.missing = Some("the configuration is gone".into());
    assert!(none_by_default.validate(&pod("shop", None)).is_allowed());
    // A token that does not name a role counts as a role too, whatever the layers.
    let mut token = pod("shop", None);
    token["request"]["object"]["spec"]["volumes"] = serde_json::json!([{ "name": "t", "projected": {
        "sources": [{ "serviceAccountToken": { "audience": "sts.amazonaws.com" } }] } }]);
    let refused = none_by_default.validate(&token);
    assert_eq!(
        refused.violations[0].denied_by,
        ViolationSource::RULES,
        "{refused:?}"
    );
    none_by_default.set.missing = None;
    assert!(none_by_default.validate(&token).is_allowed());
}

#[test]
fn a_namespace_that_was_not_seen_yet_is_waited_for() {
    let rules = Rules::of("annotations");
    let outcome = rules.validate(&pod("unheard-of", Some("shop-reader")));
    assert_eq!(
        outcome.undecided,
        Some(Undecided::Namespace("unheard-of".into()))
    );
    let answer = answer(&rules, &pod("unheard-of", Some("shop-reader")));
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 503);
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("unheard-of"), "{message}");
}

#[test]
fn a_pod_without_a_namespace_is_refused() {
    let outcome = Rules::of("annotations").validate(&pod("", Some("shop-reader")));
    assert_eq!(outcome.violations[0].path, "metadata.namespace");
}

#[test]
fn renamed_annotations_are_the_ones_that_count() {
    let mut rules = Rules::of("annotations");
    rules.keys.role = "example.com/role".into();
    rules.keys.allowed_roles = "example.com/allowed".into();
    assert!(rules.validate(&pod("shop", Some("admin"))).is_allowed());
    let mut renamed = pod("shop", None);
    renamed["request"]["object"] =
        json!({"metadata": {"annotations": {"example.com/role": "admin"}}});
    let outcome = rules.validate(&renamed);
    assert_eq!(
        outcome.violations[0].path,
        "metadata.annotations[example.com/role]"
    );
    let mut namespace = renamed;
    namespace["request"]["kind"]["kind"] = "Namespace".into();
    namespace["request"]["object"] =
        json!({"metadata": {"annotations": {"example.com/allowed": "[]"}}});
    let outcome = rules.validate(&namespace);
    assert_eq!(
        outcome.violations[0].path,
        "metadata.annotations[example.com/allowed]"
    );
}

/// Returns an object of a kind, with a label. Rules are valid.
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
    assert!(rules.validate(&grant).is_allowed());
    grant["request"]["operation"] = "DELETE".into();
    assert!(rules.validate(&grant).is_allowed());
}

#[test]
fn tokens_are_let_through_where_grants_do_not_count() {
    let mut rules = Rules::of("grants");
    let mut token = pod("shop", None);
    token["request"]["kind"] =
        json!({"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"});
    token["request"]["subResource"] = "token".into();
    token["request"]["object"] = json!({"spec": {"audiences": ["sts.amazonaws.com"]}});
    assert!(!rules.validate(&token).is_allowed());
    let mut config = (*rules.config).clone();
    config.modes[LayerId::Grants] = Mode::Audit;
    rules.config = config.into();
    let outcome = rules.validate(&token);
    assert!(outcome.is_allowed() && outcome.warnings.len() == 1);
}

#[test]
fn threat_25_warnings_and_messages_are_bounded_and_plain() {
    let violation = Violation::new(
        &"p".repeat(5000),
        LayerId::Grants,
        "r\u{1b}",
        &"é\n".repeat(5000),
    );
    let outcome = Outcome {
        violations: vec![violation.clone(); 20],
        warnings: vec![violation; 20],
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
    let answer: Value =
        serde_json::from_slice(&refusal((ReviewVersion::V1Beta1, "u-1"), "no\nway")).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
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
    let outcome = rules.validate(&namespace);
    assert_eq!(outcome.violations[0].path, "metadata.labels[tier]");
}

/// Before the configuration is read, flags apply, with which RBAC alone decides who may write.
#[test]
fn threat_10_what_is_guarded_waits_until_the_rules_were_seen() {
    let mut rules = Rules::of("annotations");
    rules.config = RuleConfig::default().into();
    rules.set.not_synced = Some(NotSynced::Config);
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
            let outcome = rules.validate(&review);
            assert!(outcome.undecided.is_some(), "{kind} {operation}");
            review["request"]["userInfo"]["groups"] = json!(["system:masters"]);
            assert!(rules.validate(&review).is_allowed(), "{kind} {operation}");
        }
    }
}

/// A review of an object of rolegate's kinds, by a user outside the group `system:masters`.
fn rules_review(kind: &str, operation: &str) -> Value {
    let mut review = pod("", None);
    review["request"]["kind"] = json!({"group": "rolegate.dev", "version": "v1", "kind": kind});
    review["request"]["operation"] = operation.into();
    review["request"]["object"] = usable(kind);
    review["request"]["userInfo"] = json!({"username": "ann", "groups": ["platform"]});
    review
}

#[test]
fn threat_10_without_a_configuration_guards_are_enforced() {
    let mut rules = Rules::of("annotations");
    rules.config = RuleConfig::default().into();
    rules.set.missing = Some("the configuration is gone".into());
    let mut namespace = pod("", None);
    namespace["request"]["kind"]["kind"] = "Namespace".into();
    namespace["request"]["object"] =
        json!({"metadata": {"annotations": {"iam.amazonaws.com/allowed-roles": "[\"*\"]"}}});
    assert!(!rules.validate(&namespace).is_allowed());
    assert!(
        !rules
            .validate(&rules_review("RoleGrant", "CREATE"))
            .is_allowed()
    );
    // It can be created again by those whom RBAC allows.
    assert!(
        rules
            .validate(&rules_review("RolegateConfig", "CREATE"))
            .is_allowed()
    );
    // An existing configuration that is invalid still names its writers.
    let mut repair = rules_review("RolegateConfig", "UPDATE");
    for (writers, is_allowed) in [
        (json!({"groups": ["platform"]}), true),
        (json!({"groups": ["others"]}), false),
        (json!(7), false),
        (Value::Null, true),
    ] {
        let old = json!({"spec": {"ruleWriters": writers, "ofALaterVersion": true}});
        let is_there = !writers.is_null();
        repair["request"]["oldObject"] = if is_there { old } else { json!({"spec": {}}) };
        let outcome = rules.validate(&repair);
        assert_eq!(outcome.is_allowed(), is_allowed, "{writers}: {outcome:?}");
    }
}

/// A layer whose rules cannot be loaded must not prevent the revert of its configuration.
#[test]
fn rules_wait_only_for_what_says_who_may_write() {
    let mut rules = Rules::of("annotations");
    for part in [
        NotSynced::Grants,
        NotSynced::Policies,
        NotSynced::Namespaces,
    ] {
        rules.set.not_synced = Some(part);
        for (kind, operation) in [("RolegateConfig", "UPDATE"), ("RoleGrant", "CREATE")] {
            let outcome = rules.validate(&rules_review(kind, operation));
            assert!(outcome.undecided.is_none(), "{kind} {part:?}: {outcome:?}");
        }
        let mut namespace = pod("", None);
        namespace["request"]["kind"]["kind"] = "Namespace".into();
        let waits = rules.validate(&namespace).undecided.is_some();
        assert_eq!(waits, part == NotSynced::Grants, "{part:?}");
    }
}

#[test]
fn an_unknown_namespace_is_a_warning_while_nothing_is_enforced() {
    let mut rules = Rules::of("annotations");
    let modes = Modes::OFF;
    rules.config = RuleConfig {
        modes,
        ..RuleConfig::default()
    }
    .into();
    let outcome = rules.validate(&pod("unheard-of", Some("shop-reader")));
    assert!(outcome.is_allowed(), "{outcome:?}");
    assert_eq!(outcome.warnings.len(), 1);
}
