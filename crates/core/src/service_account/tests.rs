//! Tests of service accounts' roles: which source applies, and the decision about them.

use std::collections::HashMap;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::arn::BaseArn;
use crate::decision::ReservedRole;
use crate::grant::{Association, CompiledGrant, Grant, SessionRules};
use crate::layer::grants::GrantsLayer;
use crate::layer::{ActiveLayer, Mode};
use crate::namespace::NamespaceRules;
use crate::test_util::pod;

const ROLES: &str = "arn:aws:iam::123456789012:role/";

fn association(namespace: &str, service_account: &str, role: &str) -> Association {
    Association {
        namespace: namespace.into(),
        service_account: service_account.into(),
        role: role.into(),
        ..Association::default()
    }
}

fn grant(name: &str, associations: &[Association]) -> Grant {
    Grant {
        name: name.into(),
        associations: associations.to_vec(),
        ..Grant::default()
    }
}

/// Returns rules with layer `grants` for the namespace `default`.
fn rules(grants: &[Grant]) -> RuleSet {
    let base = BaseArn::parse(ROLES).unwrap();
    let layer = GrantsLayer::new(grants, Some(&base));
    assert_eq!(layer.invalid(), []);
    let namespace = NamespaceRules::from_labels(crate::labels::Labels::default());
    RuleSet {
        base: Some(base),
        session_seconds: 7200,
        associations: layer.associations().clone(),
        layers: vec![ActiveLayer {
            layer: Arc::new(layer),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new(HashMap::from([("default".into(), Arc::new(namespace))])),
        ..RuleSet::default()
    }
}

fn annotations(own: Option<&str>, eks: Option<&str>) -> ServiceAccountAnnotations {
    ServiceAccountAnnotations::parse(annotation::EKS_PREFIX, |key| match key {
        annotation::SERVICE_ACCOUNT_ROLE => own,
        annotation::WEB_IDENTITY_ROLE => eks,
        _ => None,
    })
}

fn assigned(
    rules: &RuleSet,
    annotations: &ServiceAccountAnnotations,
    audience: Option<&str>,
) -> Result<Option<String>, AssignmentError> {
    let assigned = rules.assigned_role("default", "api", annotations, audience)?;
    Ok(assigned.map(|assigned| assigned.role.resource().to_owned()))
}

#[test]
fn the_source_of_a_role() {
    let associated = rules(&[grant("a", &[association("default", "api", "associated")])]);
    let none = rules(&[]);
    for (own, eks, from_grant, expected) in [
        (None, None, &none, None),
        (None, None, &associated, Some("associated")),
        (Some("own"), None, &associated, Some("own")),
        (None, Some("eks"), &associated, Some("eks")),
        (Some("own"), Some("eks"), &associated, Some("own")),
        (Some(" team/own\n"), None, &none, Some("team/own")),
        // Declined, which nothing else replaces.
        (Some(""), Some("eks"), &associated, None),
        // The EKS webhook treats an empty annotation as unset.
        (None, Some(" "), &associated, Some("associated")),
    ] {
        let role = assigned(from_grant, &annotations(own, eks), None);
        assert_eq!(role, Ok(expected.map(str::to_owned)), "{own:?} {eks:?}");
    }
}

#[test]
fn an_invalid_annotation_is_an_error_and_no_fallback() {
    let rules = rules(&[grant("a", &[association("default", "api", "associated")])]);
    for (own, eks, source) in [
        (Some("a b"), Some("eks"), AssignmentSource::Annotation),
        (
            None,
            Some("arn:aws:s3:::bucket"),
            AssignmentSource::EksAnnotation,
        ),
    ] {
        let error = assigned(&rules, &annotations(own, eks), None).unwrap_err();
        let text = error.denial().owner_message();
        assert!(text.contains(&source.to_string()), "{text}");
        assert!(
            matches!(error, AssignmentError::InvalidRole { source_of_role, .. }
                if source_of_role == source)
        );
    }
}

#[test]
fn the_most_precise_association_applies() {
    let roles = |all: &[(&str, &str)]| {
        let associations = all.iter().enumerate().map(|(place, (namespace, name))| {
            association(namespace, name, &format!("role-{place}"))
        });
        let associations: Vec<_> = associations.collect();
        let forward = assigned(
            &rules(&[grant("a", &associations)]),
            &annotations(None, None),
            None,
        );
        // The order must not matter, nor the distribution over grants.
        let apart = associations.iter().rev().enumerate();
        let apart: Vec<_> = apart
            .map(|(place, one)| grant(&format!("g{place}"), std::slice::from_ref(one)))
            .collect();
        assert_eq!(
            assigned(&rules(&apart), &annotations(None, None), None),
            forward
        );
        forward.unwrap()
    };
    for (associations, expected) in [
        (
            &[("default", "api"), ("default", "a*"), ("*", "api")][..],
            Some("role-0"),
        ),
        (
            &[("*", "*"), ("*", "api"), ("default", "*")],
            Some("role-2"),
        ),
        (&[("*", "*"), ("*", "api")], Some("role-1")),
        (&[("def*", "api"), ("default", "*")], Some("role-1")),
        (&[("d*", "api"), ("def*", "*")], Some("role-1")),
        (&[("default", "a*"), ("default", "ap*")], Some("role-1")),
        (&[("other", "api"), ("default", "other")], None),
    ] {
        assert_eq!(roles(associations).as_deref(), expected, "{associations:?}");
    }
}

#[test]
fn equally_precise_associations_must_agree() {
    let find = |first: Association, second: Association| {
        let rules = rules(&[grant("first", &[first]), grant("second", &[second])]);
        assigned(&rules, &annotations(None, None), None)
    };
    let api = |role: &str| association("default", "api", role);
    assert_eq!(
        find(api("reader"), api("reader")),
        Ok(Some("reader".into()))
    );
    let with = |change: fn(&mut Association)| {
        let mut association = api("reader");
        change(&mut association);
        association
    };
    for other in [
        api("writer"),
        with(|it| it.target_role = Some("target".into())),
        with(|it| it.external_id = Some("customer".into())),
    ] {
        let error = find(api("reader"), other).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("first (spec.associations[0])"), "{text}");
        assert!(text.contains("second (spec.associations[0])"), "{text}");
    }
    // Globs of equal precision are ambiguous too; a more precise name resolves it.
    let globs = [
        association("default", "*i", "a"),
        association("default", "a*", "b"),
    ];
    let ambiguous = rules(&[grant("globs", &globs)]);
    assert!(assigned(&ambiguous, &annotations(None, None), None).is_err());
    let exact = grant("exact", &[api("reader")]);
    let resolved = rules(&[grant("globs", &globs), exact]);
    assert_eq!(
        assigned(&resolved, &annotations(None, None), None),
        Ok(Some("reader".into()))
    );
    // An annotation needs no association.
    let own = annotations(Some("own"), None);
    assert_eq!(assigned(&ambiguous, &own, None), Ok(Some("own".into())));
}

#[test]
fn an_audience_has_its_own_role() {
    let uploader = Association {
        audience: Some("uploader.example".into()),
        ..association("default", "*", "uploader")
    };
    let rules = rules(&[grant(
        "a",
        &[association("default", "api", "reader"), uploader],
    )]);
    // Annotations say nothing about other audiences.
    let own = annotations(Some("own"), Some("eks"));
    let role = |audience| assigned(&rules, &own, audience).unwrap();
    assert_eq!(role(None).as_deref(), Some("own"));
    assert_eq!(role(Some("uploader.example")).as_deref(), Some("uploader"));
    assert_eq!(role(Some("other.example")), None);
    let audiences = rules.assigned_audiences("default", "api");
    let expected = [None, Some("uploader.example".into())];
    assert_eq!(audiences, expected.into_iter().collect());
    assert_eq!(rules.assigned_audiences("other", "api").len(), 1);
    assert!(rules.associations.audiences().contains("uploader.example"));
}

#[test]
fn malformed_associations_name_the_field() {
    type Change = fn(&mut Association);
    let fault = |change: Change| {
        let mut association = association("default", "api", "reader");
        change(&mut association);
        let base = BaseArn::parse(ROLES).unwrap();
        let compiled = CompiledGrant::compile(&grant("a", &[association]), Some(&base));
        compiled.map(|_| ()).unwrap_err().to_string()
    };
    let cases: &[(Change, &str)] = &[
        (
            |it| it.namespace = String::new(),
            "spec.associations[0].namespace: it is empty",
        ),
        (
            |it| it.service_account = "a".repeat(254),
            "serviceAccount: it has more than 253",
        ),
        (|it| it.role = "team-*".into(), "role: it must be one role"),
        (|it| it.role = "a b".into(), "role: "),
        (
            |it| it.target_role = Some("*".into()),
            "targetRole: it must be one role",
        ),
        (
            |it| it.external_id = Some("a b".into()),
            "externalId: STS accepts",
        ),
        (
            |it| it.audience = Some(String::new()),
            "audience: it must have 1 to 253",
        ),
        (
            |it| it.audience = Some("a b".into()),
            "audience: it must consist of visible",
        ),
        (
            |it| it.audience = Some("sts.amazonaws.com".into()),
            "valid at STS itself",
        ),
        (
            |it| it.audience = Some("pods.eks.amazonaws.com".into()),
            "leave the field out",
        ),
    ];
    for (change, expected) in cases {
        let text = fault(*change);
        assert!(text.contains(expected), "{text} has no {expected}");
    }
}

fn decide(rules: &RuleSet, pod: &Workload, annotations: &ServiceAccountAnnotations) -> Decision {
    let account = &pod.service_account;
    let assigned = rules.assigned_role(&pod.namespace, account, annotations, None);
    let assigned = assigned.unwrap().unwrap();
    assigned.decide(pod, |workload| {
        rules.decide(workload, Timestamp::UNIX_EPOCH)
    })
}

#[test]
fn an_association_grants_its_role_to_its_service_accounts_alone() {
    let policy = SessionRules {
        policy: "{}".into(),
        ..SessionRules::default()
    };
    let grants = [Grant {
        session: policy,
        ..grant("a", &[association("default", "api", "reader")])
    }];
    let rules = rules(&grants);
    let mut api = pod(None);
    api.service_account = "api".into();
    let Decision::Allow { key, rules: by, .. } = decide(&rules, &api, &annotations(None, None))
    else {
        panic!("the association grants its role");
    };
    assert_eq!((key.role.resource(), &*key.name), ("reader", "default.api"));
    assert_eq!(key.limits.unwrap().policy.as_deref(), Some("{}"));
    assert_eq!(*by, ["a".to_owned()]);
    // The same decision counts for a pod's own annotation.
    api.role_request = RoleRequest::for_role("reader");
    let decided = rules.decide(&api, Timestamp::UNIX_EPOCH);
    assert!(matches!(decided, Decision::Allow { .. }));
    let other = Workload {
        service_account: "other".into(),
        ..api
    };
    let decided = rules.decide(&other, Timestamp::UNIX_EPOCH);
    assert!(matches!(decided, Decision::Deny(_)));
}

#[test]
fn an_assigned_role_needs_the_decision_like_any_other() {
    let mut rules = rules(&[grant("a", &[association("default", "api", "reader")])]);
    let mut api = pod(Some("reader"));
    api.service_account = "api".into();
    // An annotation alone grants nothing, whatever the pod's own annotations say.
    let decided = decide(&rules, &api, &annotations(Some("admin"), None));
    assert!(matches!(decided, Decision::Deny(_)), "{decided:?}");
    let mirror = Workload {
        mirror: true,
        ..api.clone()
    };
    let decided = decide(&rules, &mirror, &annotations(None, None));
    assert!(matches!(decided, Decision::Deny(_)), "{decided:?}");
    rules.reserved_roles = vec![ReservedRole::parse("reader").unwrap()];
    let decided = decide(&rules, &api, &annotations(None, None));
    assert!(
        matches!(&decided, Decision::Deny(denial) if denial.denied_by == DenialSource::ReservedRole),
        "{decided:?}"
    );
}

#[test]
fn a_target_role_must_be_allowed_too() {
    let chained = Association {
        target_role: Some("arn:aws:iam::210987654321:role/target".into()),
        external_id: Some("customer".into()),
        ..association("default", "api", "reader")
    };
    let mut rules = rules(&[grant("a", &[chained])]);
    let mut api = pod(None);
    api.service_account = "api".into();
    let Decision::Allow { key, role_name, .. } = decide(&rules, &api, &annotations(None, None))
    else {
        panic!("both roles are granted");
    };
    let target = key.target.unwrap();
    assert_eq!((key.role.resource(), key.external_id), ("reader", None));
    assert_eq!(target.role.name(), "target");
    assert_eq!(role_name, target.role.as_str());
    assert_eq!(target.external_id.as_deref(), Some("customer"));
    assert_eq!(key.duration_seconds, 3600, "STS limits chained sessions");
    rules.reserved_roles = vec![ReservedRole::parse("target").unwrap()];
    let decided = decide(&rules, &api, &annotations(None, None));
    assert!(matches!(decided, Decision::Deny(_)), "{decided:?}");
}

#[test]
fn parts_of_a_grant_decide_as_the_whole() {
    let chained = Association {
        target_role: Some("target".into()),
        external_id: Some("customer".into()),
        ..association("def*", "api", "reader")
    };
    let own = crate::grant::tests::grant("a", &["shared-*"], "default");
    let whole = Grant {
        associations: vec![chained],
        ..own
    };
    let parts = whole.parts();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|part| part.associations.is_empty()));
    let base = BaseArn::parse(ROLES).unwrap();
    let layers =
        [std::slice::from_ref(&whole), &parts].map(|grants| GrantsLayer::new(grants, Some(&base)));
    for role in ["reader", "target", "shared-x", "other"] {
        let asked = resolve(role, Some(&base)).unwrap();
        for account in ["api", "other"] {
            for id in [None, Some("customer"), Some("stranger")] {
                let mut asking = pod(Some(role));
                asking.service_account = account.into();
                asking.role_request.external_id = id.map(Into::into);
                let [whole, parts] = layers.each_ref().map(|layer| {
                    let namespace = NamespaceRules::from_labels(Default::default());
                    let request = crate::layer::AccessRequest {
                        workload: &asking,
                        role: &asked,
                        is_default: false,
                        namespace: &namespace,
                        now: Timestamp::UNIX_EPOCH,
                    };
                    let verdict = crate::layer::Layer::evaluate(layer, &request);
                    matches!(verdict, crate::layer::Verdict::Allow { .. })
                });
                assert_eq!(whole, parts, "{role} {account} {id:?}");
            }
        }
    }
}

fn names() -> impl Strategy<Value = String> {
    "[ab*]{1,3}"
}

proptest! {
    /// An exact association applies whatever globs there are, and the result never depends on the
    /// order of grants.
    #[test]
    fn exact_before_glob(globs in prop::collection::vec((names(), names()), 0..8), seed in 0usize..8) {
        let globs = globs.iter().enumerate().filter(|(_, (namespace, name))| {
            namespace.contains('*') || name.contains('*')
        });
        let mut grants: Vec<_> = globs
            .map(|(place, (namespace, name))| {
                let association = association(namespace, name, &format!("glob-{place}"));
                grant(&format!("g{place}"), &[association])
            })
            .collect();
        let without = rules(&grants).assigned_role("a", "b", &Default::default(), None);
        grants.reverse();
        let reversed = rules(&grants).assigned_role("a", "b", &Default::default(), None);
        prop_assert_eq!(without.is_err(), reversed.is_err());
        if let (Ok(without), Ok(reversed)) = (&without, &reversed) {
            prop_assert_eq!(without, reversed);
        }
        let place = seed.min(grants.len());
        grants.insert(place, grant("exact", &[association("a", "b", "exact")]));
        let found = rules(&grants).assigned_role("a", "b", &Default::default(), None);
        let found = found.unwrap().unwrap();
        prop_assert_eq!(found.role.name(), "exact");
    }
}
