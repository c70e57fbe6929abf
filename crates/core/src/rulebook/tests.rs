use jiff::Timestamp;

use super::*;
use crate::attribution::{Attribution, SourceIdentity, WorkloadTags};
use crate::config::Modes;
use crate::decision::Decision;
use crate::grant::tests::grant;
use crate::memo::Memo;
use crate::session::SessionKey;
use crate::workload::Workload;
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
    book.update(RuleUpdate::Config(ClusterConfig::Broken("bad".into())));
    assert!(
        !allows(&book, "reader"),
        "what was deleted does not come back"
    );
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
    assert_eq!(limits.tags.get("eks-cluster-name"), Some("prod-1"));
}

/// The sessions of pods by a configuration, and by a grant of their role.
fn sessions(
    given: RuleConfig,
    change: impl Fn(&mut Grant),
    pods: &[&Workload],
) -> Vec<Result<SessionKey, String>> {
    let mut book = book();
    book.update(is(RuleConfig {
        attribution: given.attribution,
        cluster: given.cluster,
        ..config(Mode::Off, Mode::Enforce)
    }));
    let mut granted = grant("one", &["reader"], "default");
    change(&mut granted);
    book.update(RuleUpdate::Grants(Change::Snapshot(vec![granted])));
    let rules = book.rule_set();
    let memo = Memo::default();
    let session = |pod: &&Workload| match memo.decide(&rules, pod, Timestamp::UNIX_EPOCH) {
        Decision::Allow { key, .. } => Ok(key),
        Decision::Deny(denial) => Err(denial.to_string()),
        other => panic!("{other:?}"),
    };
    pods.iter().map(session).collect()
}

fn session(
    given: RuleConfig,
    change: impl Fn(&mut Grant),
    pod: &Workload,
) -> Result<SessionKey, String> {
    sessions(given, change, &[pod]).remove(0)
}

#[test]
fn a_session_says_whose_it_is_as_the_configuration_and_its_grant_say() {
    let all = Attribution {
        tags: WorkloadTags::Pod,
        transitive: true,
        source: SourceIdentity::ServiceAccount,
    };
    let config = |attribution| RuleConfig {
        attribution,
        ..RuleConfig::default()
    };
    let pod = pod(Some("reader"));
    let nothing = session(config(Attribution::default()), |_| (), &pod).unwrap();
    assert_eq!(nothing.limits, None);

    let key = session(config(all), |_| (), &pod).unwrap();
    assert_eq!(
        &*key.name, "default.app",
        "a pod's own session is named after it"
    );
    let limits = key.limits.unwrap();
    assert_eq!(limits.tags.get("kubernetes-pod-uid"), Some("uid-1"));
    assert!(limits.transitive);
    assert_eq!(limits.source_identity.as_deref(), Some("default.default"));

    // A grant goes before the configuration, in each of the three on its own.
    let key = session(
        config(all),
        |grant| {
            grant.session.tags = [("team".into(), "payments".into())].into();
            grant.session.attribution.tags = Some(WorkloadTags::Workload);
            grant.session.attribution.source = Some(SourceIdentity::None);
        },
        &pod,
    );
    let limits = key.unwrap().limits.unwrap();
    let keys: Vec<_> = limits.tags.iter().map(|(key, _)| key).collect();
    let expected = ["kubernetes-namespace", "kubernetes-service-account", "team"];
    assert_eq!(keys, expected);
    assert!(limits.transitive && limits.source_identity.is_none());
}

#[test]
fn pods_share_a_session_unless_it_is_tagged_with_the_pod() {
    let (one, mut two) = (pod(Some("reader")), pod(Some("reader")));
    // Of the same name, as a StatefulSet's pod and the one after it.
    two.uid = "uid-2".into();
    let shared = |tags| {
        let change = |grant: &mut Grant| grant.session.attribution.tags = Some(tags);
        let keys = sessions(RuleConfig::default(), change, &[&one, &two]);
        keys[0].as_ref().unwrap() == keys[1].as_ref().unwrap()
    };
    assert!(shared(WorkloadTags::Workload));
    assert!(!shared(WorkloadTags::Pod));
}

#[test]
fn what_sts_would_refuse_is_denied_with_the_reason() {
    let config = RuleConfig {
        cluster: Some("prod-1".into()),
        attribution: Attribution {
            tags: WorkloadTags::Workload,
            ..Attribution::default()
        },
        ..RuleConfig::default()
    };
    let tags = |count: usize| {
        move |grant: &mut Grant| {
            let tags = (0..count).map(|number| (format!("tag-{number}"), "x".into()));
            grant.session.tags = tags.collect();
        }
    };
    assert!(session(config.clone(), tags(47), &pod(Some("reader"))).is_ok());
    let denied = session(config.clone(), tags(48), &pod(Some("reader"))).unwrap_err();
    assert!(
        denied.contains("has 48 session tags and rolegate adds 3, and STS takes 50"),
        "{denied}"
    );
    // Names from a file are bound by nothing.
    let mut odd = pod(Some("reader"));
    odd.service_account = "a;b".into();
    let denied = session(config, |_| (), &odd).unwrap_err();
    assert!(denied.contains("kubernetes-service-account"), "{denied}");
}

#[test]
fn no_longer_life_is_asked_for_than_sts_gives_us() {
    let mut book = book();
    book.learn(Facts {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        longest_session: Some(3600),
        ..Facts::default()
    });
    book.update(is(config(Mode::Off, Mode::Enforce)));
    let mut long = grant("one", &["reader"], "default");
    for (asked, given) in [(43_200, 3600), (900, 900)] {
        long.session.duration_seconds = Some(asked);
        book.update(RuleUpdate::Grants(Change::Snapshot(vec![long.clone()])));
        let Decision::Allow { key, .. } = decide(&book, "reader") else {
            panic!("refused");
        };
        assert_eq!(key.duration_seconds, given);
    }
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
        ..Facts::default()
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

#[test]
fn threat_28_what_rules_read_is_known_once_they_are_loaded() {
    let needs = |book: &RuleBook| book.needs(&book.rule_set());
    let mut book = RuleBook::new(config(Mode::Off, Mode::Audit), SessionScope::Workload, 3600);
    assert_eq!(needs(&book), None, "grants are not loaded");
    let mut labelled = grant("one", &["reader"], "default");
    labelled.subjects[0].pod_selector = Some(crate::selector::Selector {
        labels: [("app", "api")].into_iter().collect(),
        ..Default::default()
    });
    book.update(RuleUpdate::Grants(Change::Snapshot(vec![labelled])));
    let read = needs(&book).unwrap();
    assert_eq!(read.pod_labels, ["app"].iter().collect());
    assert!(!read.namespace_roles, "the layer that reads them is off");
    book.update(is(config(Mode::Enforce, Mode::Off)));
    let read = needs(&book).unwrap();
    assert_eq!(
        (read.pod_labels, read.namespace_roles),
        (Default::default(), true)
    );
    book.update(RuleUpdate::Config(ClusterConfig::Unseen));
    assert_eq!(needs(&book), None);
}

#[test]
fn threat_28_nothing_is_decided_by_what_was_not_kept() {
    let mut book = book();
    let unread = |without_roles| Namespace {
        name: "default".into(),
        without_roles,
        ..Namespace::default()
    };
    book.update(RuleUpdate::Namespaces(Change::Apply(unread(true))));
    assert_eq!(decide(&book, "reader"), Decision::Undecided);
    book.update(is(config(Mode::Off, Mode::Off)));
    assert!(allows(&book, "reader"), "nothing reads it");
    book.update(is(config(Mode::Audit, Mode::Off)));
    assert!(
        allows(&book, "reader"),
        "a layer in audit mode holds up nothing"
    );
    book.update(is(config(Mode::Enforce, Mode::Off)));
    book.update(RuleUpdate::Namespaces(Change::Apply(unread(false))));
    assert!(matches!(decide(&book, "reader"), Decision::Deny(_)));
}

#[test]
fn namespaces_that_a_list_does_not_have_are_gone() {
    let mut book = book();
    let retain = |names: &[&str]| {
        RuleUpdate::RetainNamespaces(names.iter().map(|name| (*name).into()).collect())
    };
    book.update(is(config(Mode::Off, Mode::Enforce)));
    let before = book.rule_set().generation;
    assert_eq!(book.update(retain(&["default", "new"])), Touched::Nothing);
    assert_eq!(book.rule_set().generation, before);
    assert!(allows(&book, "reader"));
    assert_eq!(book.update(retain(&["new"])), Touched::All);
    assert_eq!(decide(&book, "reader"), Decision::Undecided);
}
