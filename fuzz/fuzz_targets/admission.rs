//! For any request body, the webhook returns an error or a verdict, whose response is bounded JSON
//! with the request's UID.
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rolegate_review::outcome::refusal;
use rolegate_review::{ValidationRules, Review, validate};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig, Subjects, presets};
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, RuleSetBuilder, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_rego::{
    EnforcementPoints, Kind, Policies, PolicySource, PolicyStore, RegoLayer, Settings,
};
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();

static BOOK: LazyLock<RuleSetBuilder> = LazyLock::new(|| {
    let config = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes::from_fn(|_| Mode::Enforce),
        rule_writers: Some(Subjects::default()),
        templates: presets::names()
            .filter_map(presets::preset)
            .flatten()
            .collect(),
        guard_scheduling: true,
        ..RuleConfig::default()
    };
    let mut builder = RuleSetBuilder::new(config, SessionScope::Workload, 3600);
    builder.set_aws_environment(AwsEnvironment::default());
    // The admission webhook evaluates policies on whole reviews, so this layer of its rules stays
    // empty.
    builder.set_rego(Some(Arc::new(RegoLayer::new(POLICIES.clone()))));
    let shop = Namespace {
        name: "shop".into(),
        allowed_roles: Some("[\"shop-*\"]".into()),
        ..Namespace::default()
    };
    builder.update(RuleUpdate::Namespaces(Change::Snapshot(vec![shop])));
    let grant = Grant {
        name: "shop".into(),
        roles: vec!["shop-*".into()],
        subjects: vec![Subject {
            namespaces: vec!["shop".into()],
            ..Subject::default()
        }],
        ..Grant::default()
    };
    builder.update(RuleUpdate::Grants(Change::Snapshot(vec![grant])));
    builder
});

/// Reads everything that policies read, and reports what it found.
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
    let mut builder = PolicyStore::new(Settings {
        wrap_pods: true,
        ..Settings::default()
    });
    builder.apply(PolicySource {
        namespace: "opa".into(),
        name: "roles".into(),
        kind: Kind::Policy,
        points: EnforcementPoints {
            admission: true,
            agent: false,
        },
        entries: BTreeMap::from([("main".into(), MODULE.into())]),
    });
    assert!(
        builder.never_loaded().is_empty(),
        "{:?}",
        builder.never_loaded()
    );
    builder.snapshot()
});

fn check(answer: &[u8], uid: &str) {
    assert!(answer.len() < 32 * 1024, "{}", answer.len());
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    assert_eq!(answer["response"]["uid"], uid);
    let text = answer["response"]["status"]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        !text.contains(['\r', '\n', '\u{1b}', '\u{202e}']),
        "{text:?}"
    );
}

fuzz_target!(|body: &[u8]| {
    let review = match Review::parse(body) {
        Ok(review) => review,
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() < 4096 && !text.contains(['\r', '\n', '\u{1b}']),
                "{text:?}"
            );
            if let Some(request) = error.uid() {
                check(&refusal(request, &text), request.1);
            }
            return;
        }
    };
    let (rules, keys) = (BOOK.rule_set().without(LayerId::Rego), AnnotationKeys::default());
    // Without policies, no less is allowed.
    let mut allowed = [true; 2];
    for (place, policies) in [None, Some(&**POLICIES as _)].into_iter().enumerate() {
        let gate = ValidationRules {
            rules: &rules,
            config: BOOK.config(),
            grants: BOOK.grants(),
            keys: &keys,
            policies,
            accounts: None,
        };
        let outcome = validate(&gate, &review, Timestamp::UNIX_EPOCH);
        check(&outcome.answer(&review), review.uid());
        allowed[place] = outcome.is_allowed();
    }
    assert!(
        allowed[0] || !allowed[1],
        "policies allow what the rules refuse"
    );
});
