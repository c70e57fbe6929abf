use jiff::Timestamp;

use super::*;
use crate::config::Modes;
use crate::decision::Decision;
use crate::grant::tests::grant;
use crate::workload::tests::pod;

fn config(namespace: Mode, grants: Mode) -> RuleConfig {
    RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes {
            namespace,
            grants,
            rego: Mode::Off,
        },
        ..RuleConfig::default()
    }
}

fn is(config: RuleConfig) -> RuleUpdate {
    RuleUpdate::Config(ClusterConfig::Is(Arc::new(config)))
}

/// A book that has seen namespace `default`, without annotations, and a grant of `reader`.
fn book() -> RuleBook {
    let mut book = RuleBook::new(
        config(Mode::Enforce, Mode::Off),
        SessionScope::Workload,
        3600,
    );
    book.learn(Facts::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    book.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    book.update(RuleUpdate::Grants(Change::Snapshot(vec![grant(
        "one",
        &["reader"],
        "default",
    )])));
    book
}

fn decide(book: &RuleBook, role: &str) -> Decision {
    book.rule_set()
        .decide(&pod(Some(role)), Timestamp::UNIX_EPOCH)
}

fn allows(book: &RuleBook, role: &str) -> bool {
    matches!(decide(book, role), Decision::Allow { .. })
}

#[test]
fn all_layers_that_are_enforced_must_allow() {
    let mut book = book();
    assert!(!allows(&book, "reader"), "the namespace allows nothing");
    book.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&book, "reader") && !allows(&book, "writer"));
    book.update(is(config(Mode::Enforce, Mode::Enforce)));
    assert!(!allows(&book, "reader"));
    book.update(is(RuleConfig {
        allow_unannotated: true,
        ..config(Mode::Enforce, Mode::Enforce)
    }));
    assert!(allows(&book, "reader") && !allows(&book, "writer"));
}

#[test]
fn audit_tells_and_allows() {
    let mut book = book();
    book.update(is(config(Mode::Audit, Mode::Enforce)));
    let Decision::Allow { audited, rules, .. } = decide(&book, "reader") else {
        panic!("refused");
    };
    assert_eq!((rules.len(), audited.len()), (1, 1));
    assert_eq!(audited[0].layer, "namespace");
    book.update(is(config(Mode::Off, Mode::Audit)));
    let Decision::Allow { audited, .. } = decide(&book, "writer") else {
        panic!("refused");
    };
    assert_eq!(audited[0].layer, "grants");
}

#[test]
fn threat_10_a_configuration_that_is_gone_refuses_everything() {
    let mut book = book();
    book.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&book, "reader") && book.missing().is_none());
    book.update(RuleUpdate::Config(ClusterConfig::Broken("bad".into())));
    assert!(allows(&book, "reader"), "the last good one stays");
    book.update(RuleUpdate::Config(ClusterConfig::Missing));
    assert!(!allows(&book, "reader") && book.missing().is_some());
    book.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&book, "reader"));
}

#[test]
fn threat_10_what_was_never_loaded_refuses_everything() {
    let mut book = RuleBook::new(
        config(Mode::Off, Mode::Enforce),
        SessionScope::Workload,
        3600,
    );
    book.learn(Facts::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    book.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    assert_eq!(book.unseen(), Some("grants are not loaded"));
    assert!(!allows(&book, "reader"));
    let grants = vec![grant("one", &["reader"], "default")];
    book.update(RuleUpdate::Grants(Change::Snapshot(grants)));
    assert!(allows(&book, "reader") && book.unseen().is_none());
    let rego = RuleConfig {
        modes: Modes {
            rego: Mode::Enforce,
            ..Modes::default()
        },
        ..config(Mode::Off, Mode::Enforce)
    };
    book.update(is(rego));
    assert_eq!(book.unseen(), Some("policies are not loaded"));
    book.update(RuleUpdate::Config(ClusterConfig::Broken("bad".into())));
    let mut unused = RuleBook::new(config(Mode::Off, Mode::Off), SessionScope::Workload, 3600);
    unused.update(RuleUpdate::Config(ClusterConfig::Broken("bad".into())));
    assert!(unused.missing().is_some(), "no good one before it");
}

#[test]
fn a_layer_in_audit_mode_keeps_nobody_waiting() {
    let modes = Modes {
        namespace: Mode::Off,
        grants: Mode::Audit,
        rego: Mode::Audit,
    };
    let config = RuleConfig {
        modes,
        ..config(Mode::Off, Mode::Off)
    };
    let mut book = RuleBook::new(config, SessionScope::Workload, 3600);
    book.learn(Facts::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    book.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    assert_eq!(book.unseen(), None);
    assert!(allows(&book, "reader"));
}

#[test]
fn each_change_is_a_new_generation_and_no_change_is_none() {
    let mut book = book();
    let before = book.rule_set().generation;
    let same = grant("one", &["reader"], "default");
    assert_eq!(
        book.update(RuleUpdate::Grants(Change::Apply(same))),
        Touched::Nothing
    );
    assert_eq!(book.rule_set().generation, before);
    let other = grant("one", &["writer"], "default");
    assert_eq!(
        book.update(RuleUpdate::Grants(Change::Apply(other))),
        Touched::All
    );
    assert!(book.rule_set().generation > before);
    let labelled = Namespace {
        name: "default".into(),
        labels: [("a", "b")].into_iter().collect(),
        ..Namespace::default()
    };
    let change = RuleUpdate::Namespaces(Change::Apply(labelled));
    assert_eq!(book.update(change), Touched::Namespace("default".into()));
}

#[test]
fn the_cluster_is_a_tag_of_every_session() {
    let mut book = book();
    book.update(is(RuleConfig {
        cluster: Some("prod-1".into()),
        ..config(Mode::Off, Mode::Enforce)
    }));
    let Decision::Allow { key, .. } = decide(&book, "reader") else {
        panic!("refused");
    };
    let limits = key.limits.unwrap();
    assert_eq!(limits.tags.get("rolegate.dev/cluster"), Some("prod-1"));
}

#[test]
fn flags_complete_what_the_configuration_leaves_open() {
    let own = |name: &str| OwnRole::parse(name).unwrap();
    let flags = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::210987654321:role/").ok(),
        default_role: Some("flagged".into()),
        own_roles: vec![own("flagged-node")],
        ..config(Mode::Off, Mode::Off)
    };
    let mut book = RuleBook::new(flags, SessionScope::Workload, 3600);
    book.learn(Facts {
        base: BaseArn::parse("arn:aws:iam::999999999999:role/").ok(),
        own_roles: vec![own("found-node")],
    });
    let said = |book: &RuleBook| {
        let rules = book.rule_set();
        let own: Vec<_> = rules.own_roles.into_iter().map(|own| own.name).collect();
        let default = rules.default_role.map(|role| role.to_string());
        (default.unwrap_or_default(), own.join(" "))
    };
    let of = |account: &str, name: &str| format!("arn:aws:iam::{account}:role/{name}");
    let flagged = of("210987654321", "flagged");
    assert_eq!(
        said(&book),
        (flagged.clone(), "flagged-node found-node".into())
    );
    // Layers are the configuration's alone, whatever flags say of them.
    let silent = RuleConfig {
        base: None,
        own_roles: vec![own("node")],
        ..config(Mode::Enforce, Mode::Enforce)
    };
    book.update(is(silent.clone()));
    assert_eq!(
        said(&book),
        (flagged, "node flagged-node found-node".into())
    );
    assert_eq!(book.config().modes.grants, Mode::Enforce);
    book.update(is(RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        default_role: Some("written".into()),
        ..silent
    }));
    assert_eq!(said(&book).0, of("123456789012", "written"));
}

#[test]
fn threat_06_own_roles_of_the_configuration_are_refused_whatever_allows_them() {
    let mut book = book();
    book.update(is(RuleConfig {
        own_roles: vec![OwnRole::parse("reader").unwrap()],
        ..config(Mode::Off, Mode::Enforce)
    }));
    let Decision::Deny(denial) = decide(&book, "reader") else {
        panic!("allowed");
    };
    assert_eq!(denial.layer, "own-role");
    book.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&book, "reader"));
}
