use std::collections::HashSet;

use proptest::prelude::*;
use rolegate_core::layer::Mode;

use super::*;
use crate::fixtures::{NOW, grant, pod, rules};

const NAMESPACES: [&str; 2] = ["shop", "web"];
const ACCOUNTS: [&str; 3] = ["api", "api.v2", "default"];
const ROLES: [&str; 4] = [
    "reader",
    "team/writer",
    "arn:aws:iam::123456789012:role/reader-2",
    "arn:aws:iam::210987654321:role/reader",
];
const IDS: [Option<&str>; 3] = [None, Some("customer-a"), Some("customer-b")];

fn with_id(mut pod: Workload, id: Option<&str>) -> Workload {
    pod.role_request.external_id = id.map(Into::into);
    pod
}

fn universe() -> Vec<Workload> {
    let mut all = Vec::new();
    for namespace in NAMESPACES {
        for account in ACCOUNTS {
            for role in ROLES {
                all.extend(IDS.map(|id| with_id(pod(namespace, account, role), id)));
            }
        }
    }
    all
}

fn suggested(running: &[Workload]) -> Suggestion {
    let open = rules(&[], Mode::Off);
    suggest(&open.rules, &open.grants, pods_only(running), false, NOW)
}

fn pods_only(pods: &[Workload]) -> Users<'_> {
    Users {
        pods,
        web_identity: &[],
    }
}

#[test]
fn the_suggestion_is_written_to_be_applied() {
    let running = [
        pod("shop", "api", "reader"),
        pod("shop", "api", "reader"),
        pod("shop", "api", "arn:aws:iam::123456789012:role/team/writer"),
        with_id(pod("shop", "api", "partner"), Some("customer-a")),
        pod("shop", "api", ""),
        pod("closed", "api", "reader"),
    ];
    let running: Vec<_> = running
        .into_iter()
        .enumerate()
        .map(|(n, pod)| Workload {
            name: format!("api-{n}").into(),
            ..pod
        })
        .collect();
    let suggestion = suggested(&running);
    assert_eq!(
        suggestion.yaml().unwrap(),
        "\
---
# 3 pods run with this role now
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata:
  name: shop.api
spec:
  roles:
  - reader
  - team/writer
  subjects:
  - namespaces:
    - shop
    serviceAccounts:
    - api
---
# 1 pod runs with this role now
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata:
  name: shop.api-2
spec:
  roles:
  - partner
  subjects:
  - namespaces:
    - shop
    serviceAccounts:
    - api
  externalIds:
  - customer-a
"
    );
    assert_eq!((suggestion.without_role, suggestion.covered), (2, 0));
}

#[test]
fn roles_of_web_identity_are_covered_or_told() {
    let finished = Workload {
        phase: Phase::Failed,
        ..pod("shop", "job", "job")
    };
    let account = Workload {
        name: "".into(),
        ..pod("web", "front", "reader")
    };
    let asking = |asking| WebIdentity {
        asking: vec![asking],
        unnamed: None,
    };
    let token = WebIdentity {
        asking: Vec::new(),
        unnamed: Some(UnnamedRoleRequest {
            pod: pod("shop", "mystery", ""),
            path: "spec.volumes[0]".into(),
        }),
    };
    let web_identity = [
        asking(pod("shop", "api", "reader")),
        asking(pod("closed", "api", "reader")),
        asking(finished),
        asking(account),
        token,
    ];
    let users = Users {
        pods: &[pod("shop", "api", ""), pod("shop", "other", "")],
        web_identity: &web_identity,
    };
    let open = rules(&[], Mode::Off);
    let suggestion = suggest(&open.rules, &open.grants, users, false, NOW);
    let grants: Vec<_> = suggestion
        .grants
        .iter()
        .map(|one| (&*one.grant.name, one.grant.roles.join(","), one.pods))
        .collect();
    assert_eq!(
        grants,
        [
            ("shop.api", "reader".to_owned(), 1),
            ("web.front", "reader".to_owned(), 0)
        ]
    );
    let message = suggestion.notes().join("\n");
    assert!(message.contains("1 pod is without a role now"), "{message}");
    assert!(message.contains("pod closed/api-0 with role"), "{message}");
    assert!(message.contains("namespace denies it already"), "{message}");
    assert!(
        message.contains("pod shop/mystery-0: spec.volumes[0]"),
        "{message}"
    );
    assert!(
        suggestion
            .yaml()
            .unwrap()
            .contains("# a service account names this role")
    );
    // With them, admission accepts the running pods.
    let grants: Vec<_> = suggestion.grants.into_iter().map(|one| one.grant).collect();
    let after = rules(&grants, Mode::Enforce);
    let decision = after.rules.decide(&web_identity[0].asking[0], NOW);
    assert!(matches!(decision, Decision::Allow { .. }), "{decision:?}");
}

#[test]
fn covered_finished_and_default_pods_need_no_grant() {
    let mut fixture = rules(
        &[grant("shop.api", &["reader"], "shop", "api")],
        Mode::Audit,
    );
    fixture.rules.default_role = RoleArn::parse("arn:aws:iam::123456789012:role/all").ok();
    let finished = Workload {
        phase: Phase::Succeeded,
        ..pod("shop", "job", "job")
    };
    let running = [
        pod("shop", "api", "reader"),
        pod("web", "api", ""),
        pod("shop", "other", "all"),
        finished,
    ];
    let suggest = |finished| {
        suggest(
            &fixture.rules,
            &fixture.grants,
            pods_only(&running),
            finished,
            NOW,
        )
    };
    assert_eq!(
        (suggest(false).grants.len(), suggest(false).covered),
        (0, 3)
    );
    assert_eq!(suggest(true).grants.len(), 1);
}

#[test]
fn grant_limits_remain_and_names_with_stars_grant_nothing() {
    let mut fixture = rules(&[grant("shop.api", &["reader"], "shop", "api")], Mode::Off);
    let namespaces = Arc::make_mut(&mut fixture.rules.namespaces);
    let open = namespaces["shop"].clone();
    namespaces.insert("*".into(), open);
    let running = [
        with_id(pod("shop", "api", "reader"), Some("customer-a")),
        pod("*", "api", "reader"),
        pod("shop", "*", "reader"),
    ];
    let suggestion = suggest(
        &fixture.rules,
        &fixture.grants,
        pods_only(&running),
        false,
        NOW,
    );
    assert!(suggestion.grants.is_empty());
    assert_eq!(suggestion.left_out.len(), 3);
    assert_eq!(suggestion.notes().len(), 4);
}

#[test]
fn long_lists_are_split_into_grants_that_are_valid() {
    let running: Vec<_> = (0..150)
        .map(|n| {
            let role = format!("role-{}", n % 70);
            with_id(
                pod("shop", "api", &role),
                Some(&format!("customer-{}", n % 70)),
            )
        })
        .chain((0..70).map(|n| with_id(pod("shop", "web", "x"), Some(&format!("id-{n}")))))
        .collect();
    let suggestion = suggested(&running);
    let grants: Vec<_> = suggestion
        .grants
        .iter()
        .map(|one| one.grant.clone())
        .collect();
    let after = rules(&grants, Mode::Enforce);
    assert!(
        after.grants.invalid().is_empty(),
        "{:?}",
        after.grants.invalid()
    );
    for pod in &running {
        let decision = after.rules.decide(pod, NOW);
        assert!(matches!(decision, Decision::Allow { .. }), "{decision:?}");
    }
}

proptest! {
    #[test]
    fn the_suggestion_allows_what_ran_and_nothing_else(
        mut indices in prop::collection::vec(0..universe().len(), 0..24),
    ) {
        let universe = universe();
        let running: Vec<_> = indices.iter().map(|index| universe[*index].clone()).collect();
        let suggestion = suggested(&running);
        let grants: Vec<_> = suggestion.grants.iter().map(|one| one.grant.clone()).collect();
        let names: HashSet<_> = grants.iter().map(|grant| grant.name.clone()).collect();
        prop_assert_eq!(names.len(), grants.len());
        let before = rules(&[], Mode::Off).rules;
        let after = rules(&grants, Mode::Enforce);
        prop_assert!(after.grants.invalid().is_empty());
        for candidate in &universe {
            let ran = running.iter().any(|pod| {
                let id = &candidate.role_request.external_id;
                pod.namespace == candidate.namespace
                    && pod.service_account == candidate.service_account
                    && pod.role_request.role == candidate.role_request.role
                    && (id.is_none() || *id == pod.role_request.external_id)
            });
            let decision = after.rules.decide(candidate, NOW);
            let allowed = matches!(decision, Decision::Allow { .. });
            prop_assert_eq!(allowed, ran, "{:?} {:?}", candidate, decision);
            if let (Decision::Allow { key: then, .. }, Decision::Allow { key: now, .. }) =
                (decision, before.decide(candidate, NOW))
            {
                prop_assert_eq!(then, now);
            }
        }
        // The order of pods does not matter.
        indices.reverse();
        let reversed: Vec<_> = indices.iter().map(|index| universe[*index].clone()).collect();
        prop_assert_eq!(suggested(&reversed), suggestion);
    }
}
