//! Whatever is sent to the webhook: an error, or a verdict whose answer is bounded JSON with the
//! request's own UID.
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rolegate_admission::outcome::refusal;
use rolegate_admission::{GateRules, Review, judge};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig, Subjects, presets};
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::Mode;
use rolegate_core::namespace::Namespace;
use rolegate_core::rulebook::{Facts, RuleBook, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_rego::{Kind, Points, Policies, PolicyBook, PolicySource, RegoLayer, Settings};
use serde_json::Value;

static BOOK: LazyLock<RuleBook> = LazyLock::new(|| {
    let config = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes { namespace: Mode::Enforce, grants: Mode::Enforce, rego: Mode::Enforce },
        rule_writers: Some(Subjects::default()),
        templates: presets::names().filter_map(presets::preset).flatten().collect(),
        guard_scheduling: true,
        ..RuleConfig::default()
    };
    let mut book = RuleBook::new(config, SessionScope::Workload, 3600);
    book.learn(Facts::default());
    // The gate asks policies about whole reviews, and this layer of its rules stays empty.
    book.set_rego(Some(Arc::new(RegoLayer::new(POLICIES.clone()))));
    let shop = Namespace {
        name: "shop".into(),
        allowed_roles: Some("[\"shop-*\"]".into()),
        ..Namespace::default()
    };
    book.update(RuleUpdate::Namespaces(Change::Snapshot(vec![shop])));
    let grant = Grant {
        name: "shop".into(),
        roles: vec!["shop-*".into()],
        subjects: vec![Subject { namespaces: vec!["shop".into()], ..Subject::default() }],
        ..Grant::default()
    };
    book.update(RuleUpdate::Grants(Change::Snapshot(vec![grant])));
    book
});

/// Reads what policies read, and says what it found, whoever wrote it.
const MODULE: &str = r#"package kubernetes.admission
deny[msg] {
    role := input.request.object.metadata.annotations["iam.amazonaws.com/role"]
    not startswith(role, "shop-")
    msg := sprintf("role %v of %v", [role, input.request.name])
}
deny[msg] {
    input.request.kind.kind == "Deployment"
    container := input.request.object.spec.template.spec.containers[_]
    not re_match("^shop/", container.image)
    msg := concat(" ", ["image", container.image])
}
"#;

static POLICIES: LazyLock<Arc<Policies>> = LazyLock::new(|| {
    let mut book = PolicyBook::new(Settings { wrap_pods: true, ..Settings::default() });
    book.apply(PolicySource {
        namespace: "opa".into(),
        name: "roles".into(),
        kind: Kind::Policy,
        points: Points { gate: true, door: false },
        entries: BTreeMap::from([("main".into(), MODULE.into())]),
    });
    assert!(book.never_loaded().is_empty(), "{:?}", book.never_loaded());
    book.snapshot()
});

fn check(answer: &[u8], uid: &str) {
    assert!(answer.len() < 32 * 1024, "{}", answer.len());
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    assert_eq!(answer["response"]["uid"], uid);
    let text = answer["response"]["status"]["message"].as_str().unwrap_or_default();
    assert!(!text.contains(['\r', '\n', '\u{1b}', '\u{202e}']), "{text:?}");
}

fuzz_target!(|body: &[u8]| {
    let review = match Review::parse(body) {
        Ok(review) => review,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 4096 && !text.contains(['\r', '\n', '\u{1b}']), "{text:?}");
            if let Some(uid) = error.uid() {
                check(&refusal(uid, &text), uid);
            }
            return;
        }
    };
    let (rules, keys) = (BOOK.rule_set().without("rego"), AnnotationKeys::default());
    // Without policies it allows no less.
    let mut allowed = [true; 2];
    for (place, policies) in [None, Some(&**POLICIES as _)].into_iter().enumerate() {
        let gate = GateRules {
            rules: &rules,
            config: BOOK.config(),
            grants: BOOK.grants(),
            keys: &keys,
            policies,
        };
        let outcome = judge(&gate, &review, Timestamp::UNIX_EPOCH);
        check(&outcome.answer(&review), review.uid());
        allowed[place] = outcome.is_allowed();
    }
    assert!(allowed[0] || !allowed[1], "policies allow what the rules refuse");
});
