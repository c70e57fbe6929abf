//! Tests of the decision: each layer, and the checks that precede them.

use super::*;
use crate::labels::Labels;
use crate::layer::namespace::NamespaceLayer;
use crate::namespace::Namespace;
use crate::pattern::PatternFormat;
use crate::test_util::pod;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn rules(namespace: Namespace, format: PatternFormat) -> RuleSet {
    let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
    let compiled = NamespaceRules::new(&namespace, Some(&base), format);
    RuleSet {
        base: Some(base),
        session_seconds: 3600,
        layers: vec![ActiveLayer {
            layer: Arc::new(NamespaceLayer::default()),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new(HashMap::from([("default".into(), Arc::new(compiled))])),
        ..RuleSet::default()
    }
}

fn annotated(allowed: Option<&str>, permitted: Option<&str>) -> Namespace {
    Namespace {
        name: "default".into(),
        allowed_roles: allowed.map(Into::into),
        permitted: permitted.map(Into::into),
        ..Namespace::default()
    }
}

fn is_allowed(rules: &RuleSet, role: &str) -> bool {
    matches!(rules.decide(&pod(Some(role)), NOW), Decision::Allow { .. })
}

#[test]
fn the_namespace_layer_reads_both_dialects() {
    use PatternFormat::{Glob, Regexp};
    // Allowed roles, permitted roles, format, role, expected result.
    type Case<'a> = (
        Option<&'a str>,
        Option<&'a str>,
        PatternFormat,
        &'a str,
        bool,
    );
    let cases: &[Case<'_>] = &[
        (None, None, Glob, "reader", false),
        (Some(r#"["reader"]"#), None, Glob, "reader", true),
        (Some(r#"["reader"]"#), None, Glob, "reader-admin", false),
        (Some("[]"), None, Glob, "reader", false),
        (Some("reader"), None, Glob, "reader", false),
        (Some(r#"["reader", 7]"#), None, Glob, "reader", false),
        (Some(r#"["team-[ab]"]"#), None, Regexp, "team-a", true),
        (Some(r#"["team-["]"#), None, Regexp, "team-[", false),
        (None, Some(".*"), Glob, "reader", true),
        (None, Some("reader"), Glob, "reader", true),
        (None, Some("reader"), Glob, "reader-admin", false),
        (None, Some(".*reader"), Glob, "team/reader", true),
        (
            None,
            Some("arn:aws:iam::123456789012:role/reader"),
            Glob,
            "reader",
            true,
        ),
        (None, Some(""), Glob, "reader", false),
        (None, Some("("), Glob, "reader", false),
        (Some(r#"["*"]"#), Some("writer"), Glob, "reader", false),
        (Some(r#"["*"]"#), Some("reader"), Glob, "reader", true),
        (
            Some(r#"["*"]"#),
            None,
            Glob,
            "arn:aws:iam::210987654321:role/reader",
            false,
        ),
    ];
    for (allowed, permitted, format, role, expected) in cases {
        let rules = rules(annotated(*allowed, *permitted), *format);
        assert_eq!(
            is_allowed(&rules, role),
            *expected,
            "{allowed:?} {permitted:?} {format:?} {role}"
        );
    }
}

#[test]
fn own_roles_are_refused_even_where_everything_is_allowed() {
    let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    rules.reserved_roles = vec![ReservedRole {
        account: Some("123456789012".into()),
        name: "node".into(),
    }];
    for role_request in ["node", "NODE", "some/path/node", "/node"] {
        assert!(!is_allowed(&rules, role_request), "{role_request}");
    }
    assert!(is_allowed(&rules, "node-2"));
    assert!(is_allowed(&rules, "arn:aws:iam::210987654321:role/node"));
    rules.reserved_roles[0].account = None;
    assert!(!is_allowed(&rules, "arn:aws:iam::210987654321:role/node"));
}

#[test]
fn an_own_role_is_one_accounts_or_any_accounts() {
    let own = |text: &str| {
        let own = ReservedRole::parse(text).unwrap();
        (own.account, own.name)
    };
    assert_eq!(own("node"), (None, "node".into()));
    assert_eq!(own("/path/node"), (None, "node".into()));
    let account = Some("123456789012".to_owned());
    let arn = "arn:aws:iam::123456789012:role/path/node";
    assert_eq!(own(arn), (account, "node".into()));
    for wrong in [
        "",
        "a b",
        "../x",
        "arn:aws:iam::1:role/node",
        "ARN:x",
        "path/",
    ] {
        assert!(ReservedRole::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn default_roles_in_their_order() {
    let mut namespace = annotated(Some(r#"["team"]"#), None);
    let mut with = rules(namespace.clone(), PatternFormat::Glob);
    assert_eq!(with.decide(&pod(None), NOW), Decision::NoRole);
    with.default_role = Some(resolve("basic", with.base.as_ref()).unwrap());
    let role_name = |rules: &RuleSet, role_request| match rules.decide(&pod(role_request), NOW) {
        Decision::Allow { role_name, .. } => role_name,
        other => format!("{other:?}"),
    };
    assert_eq!(role_name(&with, None), "basic");
    // As in kube2iam, a pod may name the default role, and an empty annotation declines it.
    assert_eq!(role_name(&with, Some("basic")), "basic");
    assert_eq!(with.decide(&pod(Some("")), NOW), Decision::NoRole);
    namespace.default_role = Some("team".into());
    let mut both = rules(namespace.clone(), PatternFormat::Glob);
    both.default_role = with.default_role;
    assert_eq!(role_name(&both, None), "team");
    assert_eq!(role_name(&both, Some("team")), "team");
    // A namespace cannot obtain by its default role what it may not have otherwise.
    namespace.default_role = Some("admin".into());
    let greedy = rules(namespace, PatternFormat::Glob);
    assert!(matches!(greedy.decide(&pod(None), NOW), Decision::Deny(_)));
}

#[test]
fn what_shapes_a_session_is_in_its_key() {
    let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    let key = |change: fn(&mut Workload)| {
        let mut pod = pod(Some("reader"));
        change(&mut pod);
        match rules.decide(&pod, NOW) {
            Decision::Allow { key, .. } => key,
            other => panic!("{other:?}"),
        }
    };
    let plain = key(|_| ());
    assert_eq!(&*plain.name, "default.default");
    assert_eq!(plain, key(|pod| pod.name = "other".into()));
    for change in [
        (|pod| pod.role_request.external_id = Some("id-b".into())) as fn(&mut Workload),
        |pod| pod.service_account = "api".into(),
        |pod| pod.role_request.session_name = Some("blue".into()),
        |pod| pod.role_request.role = Some("writer".into()),
    ] {
        assert_ne!(plain, key(change));
    }
}

/// Returns the session limits of a grant's rules and an attribution.
fn granted(session: crate::grant::SessionRules, attribution: Attribution) -> RuleSet {
    let grant = crate::grant::Grant {
        session,
        ..crate::grant::tests::grant("one", &["reader"], "default")
    };
    let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    let layer = crate::layer::grants::GrantsLayer::new(&[grant], rules.base.as_ref());
    rules.layers = vec![ActiveLayer {
        layer: Arc::new(layer),
        mode: Mode::Enforce,
    }];
    rules.attribution = attribution;
    rules
}

fn limits_of(rules: &RuleSet) -> Option<SessionLimits> {
    match rules.decide(&pod(Some("reader")), NOW) {
        Decision::Allow { key, .. } => key.limits.as_deref().cloned(),
        other => panic!("{other:?}"),
    }
}

/// A pod drops non-transitive tags by assuming another role, and later roles in a chain reject
/// transitive tags that they do not expect.
#[test]
fn grant_tags_are_transitive_if_configured() {
    use crate::attribution::{SourceIdentity, WorkloadTags};
    let tags = || crate::grant::SessionRules {
        tags: [("team".to_owned(), "blue".to_owned())].into(),
        ..Default::default()
    };
    let attribution = |tags, transitive, source| Attribution {
        tags,
        transitive,
        source,
    };
    for workload in [
        WorkloadTags::None,
        WorkloadTags::Workload,
        WorkloadTags::Pod,
    ] {
        for source in [SourceIdentity::None, SourceIdentity::ServiceAccount] {
            for transitive in [false, true] {
                let how = attribution(workload, transitive, source);
                let limits = limits_of(&granted(tags(), how)).unwrap();
                assert_eq!(limits.transitive, transitive, "{how:?}");
                assert_eq!(limits.tags.get("team"), Some("blue"), "{how:?}");
                let without = limits_of(&granted(Default::default(), how));
                let has_tags = workload != WorkloadTags::None;
                assert_eq!(
                    without.is_some_and(|limits| limits.transitive),
                    transitive && has_tags,
                    "{how:?}"
                );
            }
        }
    }
}

#[test]
fn policies_of_a_grant_are_in_the_sessions_key() {
    let arn = "arn:aws:iam::aws:policy/ReadOnlyAccess";
    let limited = crate::grant::SessionRules {
        policy_arns: vec![arn.into()],
        ..Default::default()
    };
    let expected = SessionLimits {
        policy_arns: vec![arn.into()],
        ..SessionLimits::default()
    };
    let rules = granted(limited, Attribution::default());
    assert_eq!(limits_of(&rules), Some(expected));
}

#[test]
fn session_names_are_those_that_the_grant_lists() {
    let named = |name: Option<&str>, names: &[&str]| {
        let session = crate::grant::SessionRules {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let mut pod = pod(Some("reader"));
        pod.role_request.session_name = name.map(Into::into);
        let rules = granted(session, Attribution::default());
        matches!(rules.decide(&pod, NOW), Decision::Allow { .. })
    };
    for (name, names, expected) in [
        (Some("default.batch-1"), &["default.batch-*"][..], true),
        (Some("default.batch-1"), &["x", "default.batch-*"], true),
        (Some("default.web"), &["default.batch-*"], false),
        (Some("default.web"), &[], true),
        // Only requested names are checked.
        (None, &["default.batch-*"], true),
    ] {
        assert_eq!(named(name, names), expected, "{name:?} {names:?}");
    }
}

#[test]
fn rules_without_a_layer_have_all_the_others() {
    let mut rules = granted(Default::default(), Attribution::default());
    rules.layers.push(ActiveLayer {
        layer: Arc::new(NamespaceLayer::default()),
        mode: Mode::Audit,
    });
    let names = |rules: &RuleSet| {
        let layers = rules.layers.iter();
        layers.map(|active| active.layer.id()).collect::<Vec<_>>()
    };
    assert_eq!(names(&rules), [LayerId::Grants, LayerId::Namespace]);
    assert_eq!(names(&rules.without(LayerId::Grants)), [LayerId::Namespace]);
    assert_eq!(
        names(&rules.without(LayerId::Rego)),
        [LayerId::Grants, LayerId::Namespace]
    );
}

#[test]
fn malformed_requests_and_mirror_pods_are_denied() {
    let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    for change in [
        (|pod| pod.role_request.role = Some("../x".into())) as fn(&mut Workload),
        |pod| pod.role_request.role = Some("x".repeat(4000).into()),
        |pod| pod.role_request.external_id = Some("x".into()),
        |pod| pod.role_request.external_id = Some("a b".into()),
        |pod| pod.role_request.session_name = Some("other.app".into()),
        |pod| pod.mirror = true,
    ] {
        let mut pod = pod(Some("reader"));
        change(&mut pod);
        let Decision::Deny(denial) = rules.decide(&pod, NOW) else {
            panic!("{pod:?} was not refused");
        };
        assert!(denial.to_string().len() < 500, "{denial}");
    }
}

/// A kubelet can create any number of mirror pods, each of which may look different to the rules.
#[test]
fn no_layer_is_evaluated_for_a_mirror_pod() {
    let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    let mut pod = pod(Some("reader"));
    assert_eq!(rules.explain(&pod, NOW).layer_results.len(), 1);
    pod.mirror = true;
    let explanation = rules.explain(&pod, NOW);
    assert!(explanation.layer_results.is_empty());
    assert!(matches!(explanation.decision, Decision::Deny(_)));
}

#[test]
fn missing_rules_take_precedence_in_denials() {
    let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    rules.missing = Some("gone".into());
    for base in [rules.base.clone(), None] {
        rules.base = base;
        let Decision::Deny(denial) = rules.decide(&pod(Some("reader")), NOW) else {
            panic!("allowed");
        };
        assert_eq!(
            (denial.denied_by, &*denial.reason),
            (DenialSource::MissingRules, "gone")
        );
    }
    assert_eq!(rules.decide(&pod(None), NOW), Decision::NoRole);
}

#[test]
fn rule_09_labels_beyond_all_bounds_allow_nothing() {
    let huge: Labels = (0..10_000).map(|n| (format!("{n:06}"), "x")).collect();
    let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    for change in [
        (|pod, huge| pod.labels = huge) as fn(&mut Workload, Labels),
        |pod, huge| pod.annotations = huge,
    ] {
        let mut pod = pod(Some("reader"));
        change(&mut pod, huge.clone());
        let Decision::Deny(denial) = rules.decide(&pod, NOW) else {
            panic!("{pod:?} was not refused");
        };
        assert!(denial.reason.contains("exceed 8 KiB"), "{denial}");
    }
    assert!(is_allowed(&rules, "reader"));
    let namespace = Namespace {
        labels: huge,
        ..annotated(None, Some(".*"))
    };
    let compiled = NamespaceRules::new(&namespace, rules.base.as_ref(), PatternFormat::Glob);
    rules.namespaces = Arc::new([("default".into(), Arc::new(compiled))].into());
    assert!(!is_allowed(&rules, "reader"));
}

#[test]
fn an_unseen_namespace_is_not_decided() {
    let mut pod = pod(Some("reader"));
    pod.namespace = "new".into();
    let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
    assert_eq!(rules.decide(&pod, NOW), Decision::Pending);
}

#[test]
fn an_owner_is_told_what_to_do_about_each_refusal() {
    for (denied_by, remedy) in [
        (
            LayerId::Namespace.into(),
            Some("must change its annotations"),
        ),
        (DenialSource::ReservedRole, Some("request another role")),
        (DenialSource::Request, Some("correct the pod's annotations")),
        (
            LayerId::Rego.into(),
            Some("ask your cluster's administrator"),
        ),
        // Their reasons say whom to ask.
        (LayerId::Grants.into(), None),
        (DenialSource::MissingRules, None),
    ] {
        let denial = Denial {
            role: "reader".into(),
            denied_by,
            rule: "a rule".into(),
            field: RequestField::Role,
            reason: "a reason".into(),
            transient: false,
        };
        let told = denial.owner_message();
        match remedy {
            Some(remedy) => assert!(
                told.starts_with(&format!("{denial}; ")) && told.ends_with(remedy),
                "{told}"
            ),
            None => assert_eq!(told, denial.to_string()),
        }
    }
}
