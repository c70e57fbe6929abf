use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::arn::resolve;
use crate::grant::{SessionRules, Subject, tests::grant};
use crate::labels::Labels;
use crate::namespace::NamespaceRules;
use crate::selector::Selector;
use crate::test_util::pod;
use crate::workload::Workload;

fn base() -> BaseArn {
    BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn select(pairs: &[(&str, &str)]) -> Option<Selector> {
    Some(Selector {
        labels: labels(pairs),
        ..Selector::default()
    })
}

fn workload(namespace: &str, account: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        service_account: account.into(),
        ..pod(Some("reader"))
    }
}

fn evaluate_in(grants: &[Grant], workload: &Workload, role: &str, namespace: Labels) -> Verdict {
    let role = resolve(role, Some(&base())).unwrap();
    GrantsLayer::new(grants, Some(&base())).evaluate(&AccessRequest {
        workload,
        role: &role,
        is_default: false,
        namespace: &NamespaceRules::from_labels(namespace),
        now: Timestamp::UNIX_EPOCH,
    })
}

fn evaluate(grants: &[Grant], workload: &Workload, role: &str) -> Verdict {
    evaluate_in(grants, workload, role, Labels::default())
}

fn allows(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Allow { .. })
}

fn rule(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Allow { rule, .. } | Verdict::Deny { rule, .. } => rule,
    }
}

fn with_policy(mut grant: Grant, policy: &str) -> Grant {
    grant.session = SessionRules {
        policy: policy.into(),
        ..SessionRules::default()
    };
    grant
}

#[test]
fn what_no_grant_covers_is_refused() {
    let grants = [grant(
        "payments",
        &["payments-*", "shared/reader"],
        "payments",
    )];
    let payments = workload("payments", "api");
    assert!(allows(&evaluate(&grants, &payments, "payments-db")));
    assert!(
        allows(&evaluate(&grants, &payments, "payments-a/b")),
        "a star crosses slashes"
    );
    assert!(allows(&evaluate(&grants, &payments, "shared/reader")));
    assert!(!allows(&evaluate(&grants, &payments, "shared/reader2")));
    assert!(!allows(&evaluate(&grants, &payments, "x-payments-db")));
    let other = "arn:aws:iam::210987654321:role/payments-db";
    assert!(
        !allows(&evaluate(&grants, &payments, other)),
        "names are of the base's account"
    );
    assert!(!allows(&evaluate(
        &grants,
        &workload("payments-2", "api"),
        "payments-db"
    )));
    assert!(!allows(&evaluate(&[], &payments, "payments-db")));
}

#[test]
fn threat_25_a_denial_hints_at_its_own_grants_only() {
    let grants = [
        grant("a", &["mine-*"], "mine"),
        grant("b", &["secret-project"], "theirs"),
    ];
    let Verdict::Deny { reason, .. } = evaluate(&grants, &workload("mine", "api"), "other") else {
        panic!("allowed");
    };
    assert!(
        reason.contains("mine-*") && !reason.contains("secret"),
        "{reason}"
    );
}

#[test]
fn everything_given_in_a_subject_must_match() {
    let mut one = grant("one", &["*"], "pay*");
    one.subjects[0].service_accounts = vec!["api-*".into()];
    one.subjects[0].namespace_selector = select(&[("team", "payments")]);
    one.subjects[0].pod_selector = select(&[("app", "api")]);
    let team = || labels(&[("team", "payments")]);
    let mut good = workload("payments", "api-1");
    good.labels = labels(&[("app", "api"), ("x", "y")]);
    let grants = [one];
    assert!(allows(&evaluate_in(&grants, &good, "reader", team())));
    assert!(!allows(&evaluate(&grants, &good, "reader")));
    let bad = Workload {
        labels: Labels::default(),
        ..good.clone()
    };
    assert!(!allows(&evaluate_in(&grants, &bad, "reader", team())));
    let bad = Workload {
        service_account: "web".into(),
        ..good.clone()
    };
    assert!(!allows(&evaluate_in(&grants, &bad, "reader", team())));
    let bad = Workload {
        namespace: "shop".into(),
        ..good
    };
    assert!(!allows(&evaluate_in(&grants, &bad, "reader", team())));
}

#[test]
fn the_closest_grant_makes_the_session() {
    let grants = [
        with_policy(grant("glob", &["rea*"], "*"), "{}"),
        with_policy(grant("name", &["reader"], "*"), r#"{"a":1}"#),
        with_policy(
            grant("arn", &["arn:aws:iam::123456789012:role/reader"], "*"),
            r#"{"b":1}"#,
        ),
    ];
    let pod = workload("shop", "web");
    assert_eq!(rule(&evaluate(&grants, &pod, "reader")), "arn");
    assert_eq!(rule(&evaluate(&grants[..2], &pod, "reader")), "name");
    assert_eq!(rule(&evaluate(&grants[..1], &pod, "reader")), "glob");
}

#[test]
fn threat_13_equals_that_differ_in_session_are_ambiguous_and_pod_labels_make_none_closer() {
    let open = with_policy(grant("open", &["reader"], "*"), "");
    let mut labelled = with_policy(grant("labelled", &["reader"], "*"), r#"{"narrow":1}"#);
    labelled.subjects[0].pod_selector = select(&[("app", "api")]);
    let mut pod = workload("shop", "web");
    pod.labels = labels(&[("app", "api")]);
    let grants = [open.clone(), labelled];
    let verdict = evaluate(&grants, &pod, "reader");
    assert!(!allows(&verdict));
    assert_eq!(rule(&verdict), "labelled, open");
    let same = Grant {
        name: "same".into(),
        ..open.clone()
    };
    assert!(allows(&evaluate(&[open.clone(), same], &pod, "reader")));
    let mut names = Grant {
        name: "names".into(),
        ..open.clone()
    };
    names.session.names = vec!["shop.*".into()];
    assert!(
        !allows(&evaluate(&[open, names], &pod, "reader")),
        "names are a difference too"
    );
}

#[test]
fn an_external_id_must_be_listed() {
    let mut one = grant("one", &["reader"], "*");
    one.external_ids = vec!["customer-a".into()];
    let mut pod = workload("shop", "web");
    assert!(allows(&evaluate(&[one.clone()], &pod, "reader")));
    pod.role_request.external_id = Some("customer-a".into());
    assert!(allows(&evaluate(&[one.clone()], &pod, "reader")));
    pod.role_request.external_id = Some("customer-b".into());
    assert!(!allows(&evaluate(&[one], &pod, "reader")));
    assert!(!allows(&evaluate(
        &[grant("none", &["reader"], "*")],
        &pod,
        "reader"
    )));
}

#[test]
fn threat_13_an_external_id_sheds_no_limits() {
    let pod = |id: &str| {
        let mut pod = workload("shop", "web");
        pod.role_request.external_id = Some(id.into());
        pod
    };
    let narrow = with_policy(grant("narrow", &["reader"], "*"), r#"{"narrow":1}"#);
    let mut broad = grant("broad", &["rea*"], "*");
    broad.external_ids = vec!["customer-a".into()];
    let verdict = evaluate(
        &[narrow.clone(), broad.clone()],
        &pod("customer-a"),
        "reader",
    );
    assert!(!allows(&verdict), "the closest grant does not list the ID");
    assert_eq!(rule(&verdict), "narrow");
    // Nor does it resolve an ambiguity that exists without it.
    let mut equal = Grant {
        name: "equal".into(),
        ..broad.clone()
    };
    equal.roles = vec!["reader".into()];
    let verdict = evaluate(&[narrow.clone(), equal], &pod("customer-a"), "reader");
    assert_eq!(rule(&verdict), "equal, narrow");
    // If the session is the same, no restriction can be dropped.
    let listing = with_policy(broad, r#"{"narrow":1}"#);
    let grants = [narrow, listing];
    assert_eq!(
        rule(&evaluate(&grants, &pod("customer-a"), "reader")),
        "broad"
    );
    assert!(!allows(&evaluate(&grants, &pod("customer-b"), "reader")));
}

#[test]
fn the_default_role_needs_no_grant_and_takes_no_external_id() {
    let evaluate = |grants: &[Grant], pod: &Workload| {
        GrantsLayer::new(grants, Some(&base())).evaluate(&AccessRequest {
            workload: pod,
            role: &resolve("reader", Some(&base())).unwrap(),
            is_default: true,
            namespace: &NamespaceRules::from_labels(Labels::default()),
            now: Timestamp::UNIX_EPOCH,
        })
    };
    let mut pod = workload("shop", "web");
    assert!(allows(&evaluate(&[], &pod)));
    pod.role_request.external_id = Some("customer-a".into());
    assert!(!allows(&evaluate(&[], &pod)));
    let mut listing = grant("listing", &["reader"], "*");
    listing.external_ids = vec!["customer-a".into()];
    assert!(allows(&evaluate(&[listing], &pod)));
}

#[test]
fn an_invalid_grant_grants_nothing_and_is_named() {
    let mut broken = grant("broken", &["*"], "*");
    broken.subjects.push(Subject::default());
    let layer = GrantsLayer::new([&broken], Some(&base()));
    assert_eq!(layer.invalid().len(), 1);
    assert!(!allows(&evaluate(
        &[broken],
        &workload("shop", "web"),
        "reader"
    )));
}

/// Evaluates every grant, without the index.
fn by_hand(grants: &[Grant], workload: &Workload, role: &str) -> bool {
    let role = resolve(role, Some(&base())).unwrap();
    grants.iter().any(|grant| {
        let compiled = CompiledGrant::compile(grant, Some(&base())).unwrap();
        compiled.specificity(&role).is_some() && compiled.covers(workload, &Labels::default())
    })
}

prop_compose! {
    fn any_grant()(roles in prop::collection::vec("[ab]{1,2}[*]?|[*][ab]", 1..3),
                   namespaces in prop::collection::vec("[xy][*]?|[*]", 1..3),
                   accounts in prop::collection::vec("[pq][*]?", 0..2),
                   number in 0..1000u32) -> Grant {
        let roles: Vec<_> = roles.iter().map(String::as_str).collect();
        let mut grant = grant(&format!("g{number}"), &roles, "x");
        grant.subjects[0].namespaces = namespaces;
        grant.subjects[0].service_accounts = accounts;
        grant
    }
}

proptest! {
    #[test]
    fn the_index_finds_what_a_look_at_all_finds(grants in prop::collection::vec(any_grant(), 0..6),
            role in "[ab]{1,3}", namespace in "[xyz]", account in "[pqr]") {
        let workload = workload(&namespace, &account);
        prop_assert_eq!(allows(&evaluate(&grants, &workload, &role)), by_hand(&grants, &workload, &role));
    }

    #[test]
    fn more_grants_never_allow_less(grants in prop::collection::vec(any_grant(), 0..6),
            more in any_grant(), role in "[ab]{1,3}", namespace in "[xyz]", account in "[pqr]") {
        let workload = workload(&namespace, &account);
        if allows(&evaluate(&grants, &workload, &role)) {
            let mut all = grants;
            all.push(more);
            prop_assert!(allows(&evaluate(&all, &workload, &role)));
        }
    }
}

#[test]
fn threat_07_labels_that_an_invalid_grant_looks_at_are_known_too() {
    let with_label = |name: &str, key: &str, roles: &[&str]| Grant {
        subjects: vec![Subject {
            namespace_selector: Some(Selector {
                labels: [(key, "x")].into_iter().collect(),
                ..Selector::default()
            }),
            ..Subject::default()
        }],
        ..grant(name, roles, "unused")
    };
    let [good, mut broken, bare] = [
        with_label("good", "team", &["a"]),
        with_label("broken", "tier", &["a"]),
        with_label("bare", "zone", &["no-base*"]),
    ];
    broken.unreadable = Some("a field of a later version".into());
    let layer = GrantsLayer::new([&good, &broken, &bare], None);
    assert_eq!(layer.invalid().len(), 3, "names need a base");
    let keys: Vec<_> = layer.namespace_label_keys().collect();
    assert_eq!(keys, ["team", "tier", "zone"]);
}

#[test]
fn threat_28_a_grant_whose_labels_were_not_kept_is_not_asked() {
    let mut labelled = grant("labelled", &["reader"], "shop");
    labelled.subjects[0].pod_selector = select(&[("app", "api")]);
    let mut absent = grant("absent", &["writer"], "*");
    absent.subjects[0].namespace_selector = Some(Selector {
        expressions: vec![crate::selector::Requirement {
            key: "locked".into(),
            operator: crate::selector::Operator::DoesNotExist,
        }],
        ..Selector::default()
    });
    let layer = GrantsLayer::new(&[labelled, absent], Some(&base()));
    let needs = layer.needs();
    assert_eq!(needs.pod_labels, ["app"].iter().collect());
    assert_eq!(needs.namespace_labels, ["locked"].iter().collect());
    let lacks = |pod: &Workload, role: &str, namespace: Labels| {
        let role = resolve(role, Some(&base())).unwrap();
        layer.lacks(&AccessRequest {
            workload: pod,
            role: &role,
            is_default: false,
            namespace: &NamespaceRules::from_labels(namespace),
            now: Timestamp::UNIX_EPOCH,
        })
    };
    let other = ["x"].iter().collect();
    let unknown = Labels::from_object([("app", "api"), ("locked", "")], &other);
    let whole = Labels::default;
    let pod = |namespace, labels| Workload {
        labels,
        ..workload(namespace, "web")
    };
    // If a label is not stored, a requirement of its absence or presence must not be evaluated.
    assert!(lacks(&pod("shop", unknown.clone()), "reader", whole()));
    assert!(lacks(&pod("shop", whole()), "writer", unknown.clone()));
    // Labels that no grant covering the pod reads make no difference.
    assert!(!lacks(&pod("shop", unknown.clone()), "other", whole()));
    assert!(!lacks(
        &pod("else", unknown.clone()),
        "reader",
        unknown.clone()
    ));
    assert!(!lacks(&pod("shop", whole()), "reader", unknown));
    let known = Labels::from_object([("app", "x")], &needs.pod_labels);
    assert!(!lacks(&pod("shop", known), "reader", whole()));
}
