//! Tests of grants: validation, namespaces selected by name, and session settings.

use super::*;

/// Returns a grant of `roles` to all workloads of `namespace`.
pub(crate) fn grant(name: &str, roles: &[&str], namespace: &str) -> Grant {
    Grant {
        name: name.into(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        subjects: vec![Subject {
            namespaces: vec![namespace.into()],
            ..Subject::default()
        }],
        ..Grant::default()
    }
}

fn base() -> BaseArn {
    BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()
}

#[test]
fn threat_07_a_grant_looks_for_names_unless_any_will_do() {
    let looks = |subject: Subject, name: &str, labels: &[(&str, &str)]| {
        let grant = Grant {
            subjects: vec![subject],
            ..grant("names", &["reader"], "none")
        };
        let compiled = CompiledGrant::compile(&grant, Some(&base())).unwrap();
        compiled.matches_namespace(name, &labels.iter().copied().collect())
    };
    let named = |names: &[&str]| Subject {
        namespaces: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Subject::default()
    };
    for (names, is_looked_for) in [
        (&["shop"][..], true),
        (&["s*p"], true),
        (&["other", "sh*"], true),
        (&["other"], false),
        // These match without selecting a particular name.
        (&["*"], false),
        (&["**", "shop"], false),
    ] {
        assert_eq!(looks(named(names), "shop", &[]), is_looked_for, "{names:?}");
    }
    let selector = |key: &str, value: &str| {
        Some(Selector {
            labels: [(key, value)].into_iter().collect(),
            ..Selector::default()
        })
    };
    let both = || Subject {
        namespace_selector: selector("team", "blue"),
        ..named(&["shop"])
    };
    assert!(
        !looks(both(), "shop", &[]),
        "the label is guarded by itself"
    );
    assert!(looks(both(), "shop", &[("team", "blue")]));
    let by_label = |key| Subject {
        namespace_selector: selector(key, "shop"),
        ..Subject::default()
    };
    let labels = [(crate::namespace::NAME_LABEL, "shop"), ("team", "shop")];
    assert!(looks(
        by_label(crate::namespace::NAME_LABEL),
        "shop",
        &labels
    ));
    assert!(!looks(by_label("team"), "shop", &labels));
}

#[test]
fn an_empty_grant_is_invalid_and_never_everyone() {
    let good = grant("good", &["reader"], "payments");
    assert!(CompiledGrant::compile(&good, Some(&base())).is_ok());
    let broken: &[fn(&mut Grant)] = &[
        |grant| grant.roles.clear(),
        |grant| grant.unreadable = Some("unknown field".into()),
        |grant| grant.roles = vec![String::new()],
        |grant| grant.roles = vec!["a b".into()],
        |grant| grant.roles = vec!["a b*".into()],
        |grant| grant.roles = vec!["arn:aws:iam::1:role/x".into()],
        |grant| grant.subjects.clear(),
        |grant| grant.subjects = vec![Subject::default()],
        |grant| grant.subjects.push(Subject::default()),
        |grant| {
            grant.subjects = vec![Subject {
                service_accounts: vec!["api".into()],
                ..Subject::default()
            }]
        },
        |grant| {
            grant.subjects = vec![Subject {
                namespace_selector: Some(Selector::default()),
                ..Subject::default()
            }]
        },
        |grant| grant.subjects[0].namespace_selector = Some(Selector::default()),
        |grant| grant.subjects[0].pod_selector = Some(Selector::default()),
        |grant| grant.subjects[0].namespaces = vec![String::new()],
        |grant| grant.subjects[0].service_accounts = vec![String::new()],
        |grant| grant.session.duration_seconds = Some(899),
        |grant| grant.session.policy = "[]".into(),
        |grant| grant.session.policy = "x".repeat(3000),
        |grant| grant.session.policy_arns = vec!["arn:aws:iam::aws:role/x".into()],
        |grant| grant.session.tags = [("kubernetes-namespace".into(), "x".into())].into(),
        |grant| grant.session.tags = [("Rolegate.dev/cluster".into(), "x".into())].into(),
        |grant| grant.session.tags = [("a".into(), "x".into()), ("A".into(), "x".into())].into(),
        |grant| grant.session.tags = [("a;".into(), "x".into())].into(),
        |grant| grant.roles = vec!["r".into(); MAX_LIST + 1],
    ];
    for (index, change) in broken.iter().enumerate() {
        let mut grant = good.clone();
        change(&mut grant);
        let error = CompiledGrant::compile(&grant, Some(&base()));
        assert!(error.is_err(), "{index}: {grant:?}");
    }
    assert!(CompiledGrant::compile(&grant("names", &["reader-*"], "x"), None).is_err());
}

#[test]
fn patterns_know_how_closely_they_name_a_role() {
    let specificity = |pattern: &str| {
        let grant = grant("one", &[pattern, "zz*"], "x");
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/team/reader").unwrap();
        CompiledGrant::compile(&grant, Some(&base()))
            .unwrap()
            .specificity(&role)
    };
    assert_eq!(
        specificity("arn:aws:iam::123456789012:role/team/reader"),
        Some(Specificity::Arn)
    );
    assert_eq!(specificity("team/reader"), Some(Specificity::Name));
    assert_eq!(specificity("team*"), Some(Specificity::Glob));
    assert_eq!(
        specificity("arn:aws:iam::*:role/team/reader"),
        Some(Specificity::Glob)
    );
    assert_eq!(specificity("reader"), None);
    assert_eq!(specificity("*reader-*"), None);
}

/// Compiles a valid grant with a change applied.
fn changed(change: impl FnOnce(&mut Grant)) -> Result<CompiledGrant, GrantError> {
    let mut grant = grant("one", &["reader"], "payments");
    change(&mut grant);
    CompiledGrant::compile(&grant, Some(&base()))
}

#[test]
fn what_limits_a_session_reaches_it_whole() {
    let arns = [
        "arn:aws:iam::123456789012:policy/team/Own",
        "arn:aws:iam::aws:policy/ReadOnlyAccess",
    ];
    let policy = r#"{"Version":"2012-10-17","Statement":[]}"#;
    let compiled = changed(|grant| {
        grant.session.duration_seconds = Some(900);
        // In another order, and with a duplicate.
        grant.session.policy_arns = [arns[1], arns[0], arns[1]].map(str::to_owned).to_vec();
        grant.session.policy = policy.into();
        grant.session.tags = [("team".into(), "blue".into())].into();
    });
    let session = &compiled.unwrap().session;
    assert_eq!(session.duration_seconds, Some(900));
    let expected = SessionLimits {
        tags: [("team", "blue")].into_iter().collect(),
        transitive: false,
        source_identity: None,
        policy_arns: arns.map(Into::into).to_vec(),
        policy: Some(policy.into()),
    };
    assert_eq!(session.limits.as_deref(), Some(&expected));
    // Each of them alone is a limit.
    for change in [
        (|grant| grant.session.policy_arns = vec!["arn:aws:iam::aws:policy/A".into()])
            as fn(&mut Grant),
        |grant| grant.session.policy = "{}".into(),
        |grant| grant.session.tags = [("team".into(), "blue".into())].into(),
    ] {
        let compiled = changed(change).unwrap();
        assert_ne!(compiled.session.limits, None);
    }
    assert_eq!(changed(|_| ()).unwrap().session.limits, None);
}

#[test]
fn arns_of_managed_policies_are_told_from_others() {
    let is_taken = |arn: &str| {
        let arn = arn.to_owned();
        changed(|grant| grant.session.policy_arns = vec![arn]).is_ok()
    };
    let longest = format!("arn:aws:iam::aws:policy/{}", "x".repeat(2048 - 24));
    for arn in [
        "arn:aws:iam::aws:policy/ReadOnlyAccess",
        "arn:aws:iam::aws:policy/job-function/ViewOnlyAccess",
        "arn:aws:iam::123456789012:policy/Own",
        "arn:aws:iam::123456789012:policy/team/Own",
        "arn:aws-cn:iam::123456789012:policy/Own",
        "arn:aws-us-gov:iam::aws:policy/ReadOnlyAccess",
        &longest,
    ] {
        assert!(is_taken(arn), "{arn}");
    }
    for arn in [
        "",
        "ReadOnlyAccess",
        "ARN:aws:iam::aws:policy/A",
        "arn:gcp:iam::aws:policy/A",
        "arn:aws:sts::aws:policy/A",
        "arn:aws:iam:eu-west-1:aws:policy/A",
        "arn:aws:iam::amazon:policy/A",
        "arn:aws:iam::12345678901:policy/A",
        "arn:aws:iam::1234567890123:policy/A",
        "arn:aws:iam::12345678901a:policy/A",
        "arn:aws:iam:::policy/A",
        "arn:aws:iam::aws:role/A",
        "arn:aws:iam::aws:policy/",
        "arn:aws:iam::aws:policy",
        "arn:aws:iam::aws",
        &format!("{longest}x"),
    ] {
        assert!(!is_taken(arn), "{arn}");
    }
}

#[test]
fn counts_and_lengths_are_taken_up_to_their_limit() {
    type Change = fn(&mut Grant, usize);
    let cases: &[(&str, usize, Change)] = &[
        ("policyArns", MAX_POLICY_ARNS, |grant, count| {
            let arn = |n| format!("arn:aws:iam::aws:policy/P{n}");
            grant.session.policy_arns = (0..count).map(arn).collect();
        }),
        ("policy", MAX_POLICY, |grant, length| {
            grant.session.policy = format!("{{{}}}", " ".repeat(length - 2));
        }),
        ("tags", MAX_TAGS, |grant, count| {
            let tag = |n| (format!("tag-{n}"), "x".to_owned());
            grant.session.tags = (0..count).map(tag).collect();
        }),
        ("names", MAX_LIST, |grant, count| {
            grant.session.names = (0..count).map(|n| format!("payments.{n}")).collect();
        }),
        ("subjects", MAX_LIST, |grant, count| {
            let subject = grant.subjects[0].clone();
            grant.subjects = vec![subject; count];
        }),
        ("namespaces", MAX_LIST, |grant, count| {
            grant.subjects[0].namespaces = vec!["a".into(); count];
        }),
        ("serviceAccounts", MAX_LIST, |grant, count| {
            grant.subjects[0].service_accounts = vec!["a".into(); count];
        }),
        ("roles", MAX_LIST, |grant, count| {
            grant.roles = vec!["reader".into(); count];
        }),
        ("externalIds", MAX_LIST, |grant, count| {
            grant.external_ids = vec!["id".into(); count];
        }),
    ];
    for (what, limit, change) in cases {
        for (count, is_taken) in [(*limit, true), (limit + 1, false), (limit + 2, false)] {
            let compiled = changed(|grant| change(grant, count));
            assert_eq!(compiled.is_ok(), is_taken, "{count} {what}");
        }
    }
    for (seconds, is_taken) in [(899, false), (900, true), (43_200, true), (43_201, false)] {
        let compiled = changed(|grant| grant.session.duration_seconds = Some(seconds));
        assert_eq!(compiled.is_ok(), is_taken, "{seconds} s");
    }
}
