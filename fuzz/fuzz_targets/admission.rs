//! Whatever is sent to the webhook: an error, or a verdict whose answer is bounded JSON with the
//! request's own UID.
#![no_main]

use std::sync::LazyLock;

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
use serde_json::Value;

static BOOK: LazyLock<RuleBook> = LazyLock::new(|| {
    let config = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes { namespace: Mode::Enforce, grants: Mode::Enforce, rego: Mode::Off },
        rule_writers: Some(Subjects::default()),
        templates: presets::names().filter_map(presets::preset).flatten().collect(),
        guard_scheduling: true,
        ..RuleConfig::default()
    };
    let mut book = RuleBook::new(config, SessionScope::Workload, 3600);
    book.learn(Facts::default());
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
    let (rules, keys) = (BOOK.rule_set(), AnnotationKeys::default());
    let gate = GateRules {
        rules: &rules,
        config: BOOK.config(),
        grants: BOOK.grants(),
        keys: &keys,
        policies: None,
    };
    check(&judge(&gate, &review, Timestamp::UNIX_EPOCH).answer(&review), review.uid());
});
