//! Fixtures for this crate's tests: namespaces `shop` and `web`, which allow every role of the base
//! and of account 210987654321, and `closed`, which allows none.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::arn::BaseArn;
use rolegate_core::decision::RuleSet;
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::namespace::NamespaceLayer;
use rolegate_core::layer::{ActiveLayer, Mode};
use rolegate_core::namespace::{Namespace, NamespaceRules};
use rolegate_core::pattern::PatternFormat;
use rolegate_core::test_util;
use rolegate_core::workload::Workload;

pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(crate) struct Fixture {
    pub(crate) rules: RuleSet,
    pub(crate) grants: Arc<GrantsLayer>,
}

pub(crate) fn base() -> BaseArn {
    BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()
}

pub(crate) fn namespace(name: &str, allowed: &str) -> Namespace {
    Namespace {
        name: name.into(),
        allowed_roles: Some(allowed.into()),
        ..Namespace::default()
    }
}

/// Returns rules with layer `namespace` enforced, and these grants in `mode`.
pub(crate) fn rules(grants: &[Grant], mode: Mode) -> Fixture {
    let namespaces = [
        namespace("shop", r#"["*", "arn:aws:iam::210987654321:role/*"]"#),
        namespace("web", r#"["*", "arn:aws:iam::210987654321:role/*"]"#),
        namespace("closed", "[]"),
    ];
    rules_of(&namespaces, grants, mode)
}

pub(crate) fn rules_of(namespaces: &[Namespace], grants: &[Grant], mode: Mode) -> Fixture {
    let base = base();
    let compiled = namespaces.iter().map(|namespace| {
        let rules = NamespaceRules::new(namespace, Some(&base), PatternFormat::Glob);
        (namespace.name.clone(), Arc::new(rules))
    });
    let namespaces: HashMap<_, _> = compiled.collect();
    let grants = Arc::new(GrantsLayer::new(grants, Some(&base)));
    let mut layers = vec![ActiveLayer {
        layer: Arc::new(NamespaceLayer::default()),
        mode: Mode::Enforce,
    }];
    if mode != Mode::Off {
        layers.push(ActiveLayer {
            layer: grants.clone(),
            mode,
        });
    }
    Fixture {
        rules: RuleSet {
            base: Some(base),
            session_seconds: 3600,
            layers,
            namespaces: Arc::new(namespaces),
            ..RuleSet::default()
        },
        grants,
    }
}

pub(crate) fn grant(name: &str, roles: &[&str], namespace: &str, account: &str) -> Grant {
    Grant {
        name: name.into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        subjects: vec![Subject {
            namespaces: vec![namespace.into()],
            service_accounts: vec![account.into()],
            ..Subject::default()
        }],
        ..Grant::default()
    }
}

pub(crate) fn pod(namespace: &str, account: &str, role: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        name: format!("{account}-0").into(),
        uid: format!("{namespace}-{account}").into(),
        service_account: account.into(),
        ..test_util::pod((!role.is_empty()).then_some(role))
    }
}
