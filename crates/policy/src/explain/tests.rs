use rolegate_core::attribution::{AttributionRules, SourceIdentity, WorkloadTags};
use rolegate_core::decision::ReservedRole;
use rolegate_core::layer::Mode;

use super::*;
use crate::fixtures::{Fixture, NOW, grant, pod, rules};

fn ask(fixture: &Fixture, workload: &Workload) -> Explained {
    explain(&Question {
        rules: &fixture.rules,
        grants: &fixture.grants,
        policies: &[AskedPolicy {
            name: "opa/roles".into(),
            admission: true,
            agent: false,
            denials: vec!["no".into()],
        }],
        workload,
        web_identity: None,
        admission: None,
        now: NOW,
    })
}

/// Removes colours.
fn bare(text: &str) -> String {
    let mut bare = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\x1b') {
        bare.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    bare + rest
}

#[test]
fn an_allowed_pod_is_told_its_session() {
    let mut reader = grant("shop", &["reader"], "shop", "api");
    reader.session.duration_seconds = Some(900);
    reader.session.tags = [("team".to_owned(), "shop".to_owned())].into();
    reader.session.attribution = AttributionRules {
        tags: Some(WorkloadTags::Workload),
        transitive: Some(true),
        source: Some(SourceIdentity::ServiceAccount),
    };
    let explained = ask(
        &rules(&[reader], Mode::Enforce),
        &pod("shop", "api", "reader"),
    );
    assert_eq!(
        bare(&explained.text()),
        "\
pod api-0, service account api of namespace shop
  role        arn:aws:iam::123456789012:role/reader
  decision    allowed

layers
  namespace   enforce  allows by iam.amazonaws.com/allowed-roles: *
  grants      enforce  allows by shop

session
  role ARN    arn:aws:iam::123456789012:role/reader
  name        shop.api
  duration    900 s
  tag         kubernetes-namespace=shop
  tag         kubernetes-service-account=api
  tag         team=shop
  transitive  all tags
  source      shop.api

Rego policies
  opa/roles  evaluated at admission
    denies: no
"
    );
}

#[test]
fn denied_pods_are_shown_with_the_missing_grant() {
    let explained = ask(&rules(&[], Mode::Enforce), &pod("shop", "api", "reader"));
    let text = bare(&explained.text());
    assert!(
        text.contains("decision    denied by grants: no RoleGrant covers"),
        "{text}"
    );
    assert!(text.contains("fix         apply the grant below"), "{text}");
    assert!(
        text.ends_with(
            "\
---
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata:
  name: shop.api
spec:
  roles:
  - reader
  subjects:
  - namespaces:
    - shop
    serviceAccounts:
    - api
"
        ),
        "{text}"
    );
}

#[test]
fn json_has_every_field_always() {
    let explained = ask(&rules(&[], Mode::Audit), &pod("shop", "api", "reader"));
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["decision"], "allowed");
    assert_eq!(json["audited"][0]["layer"], "grants");
    assert_eq!(json["grant"]["metadata"]["name"], "shop.api");
    assert_eq!(json["session"]["durationSeconds"], 3600);
    for field in ["denial", "refusedWithGrant", "advice"] {
        assert!(json.get(field).is_some_and(Value::is_null), "{field}");
    }
}

#[test]
fn sessions_that_exceed_the_chaining_limit_have_a_note() {
    let mut fixture = rules(&[], Mode::Off);
    let note = "3600 s if rolegate's own credentials are a session of a role";
    for (seconds, noted) in [(3600, false), (7200, true)] {
        fixture.rules.session_seconds = seconds;
        let text = ask(&fixture, &pod("shop", "api", "reader")).text();
        assert!(text.contains(&format!("{seconds} s\n")), "{text}");
        assert_eq!(text.contains(note), noted, "{text}");
    }
}

#[test]
fn each_outcome_has_its_advice() {
    let mut fixture = rules(&[], Mode::Off);
    fixture.rules.reserved_roles = vec![ReservedRole {
        account: None,
        name: "node".into(),
    }];
    for (pod, outcome, advice) in [
        (pod("shop", "api", ""), Outcome::NoRole, "annotate the pod"),
        (
            Workload {
                host_network: true,
                ..pod("shop", "api", "reader")
            },
            Outcome::HostNetwork,
            "off the host's network",
        ),
        (
            pod("none", "api", "x"),
            Outcome::UnknownNamespace,
            "not contain namespace none",
        ),
        (
            pod("closed", "api", "x"),
            Outcome::Denied,
            "annotations of namespace closed",
        ),
        (
            pod("shop", "api", "node"),
            Outcome::Denied,
            "request another role",
        ),
        (
            pod("shop", "api", "../x"),
            Outcome::Denied,
            "correct the pod's annotations",
        ),
    ] {
        let explained = ask(&fixture, &pod);
        assert_eq!(explained.decision, outcome, "{pod:?}");
        assert!(
            explained.advice.as_deref().unwrap().contains(advice),
            "{explained:?}"
        );
        assert!(!bare(&explained.text()).is_empty());
    }
}

#[test]
fn threat_25_what_pods_write_does_not_move_the_terminal() {
    let explained = ask(&rules(&[], Mode::Off), &pod("shop", "api", "\x1b[2Jx"));
    assert!(!explained.text().contains("\x1b[2J"));
}

#[test]
fn web_identity_roles_are_shown_with_their_missing_grant() {
    let fixture = rules(&[grant("a", &["writer"], "shop", "api")], Mode::Enforce);
    let asked = WebIdentity {
        asking: vec![pod("shop", "api", "reader"), pod("shop", "api", "writer")],
        unnamed: None,
    };
    let workload = pod("shop", "api", "");
    let explained = explain(&Question {
        rules: &fixture.rules,
        grants: &fixture.grants,
        policies: &[],
        workload: &workload,
        web_identity: Some(&asked),
        admission: None,
        now: NOW,
    });
    let text = bare(&explained.text());
    assert!(
        text.contains("  reader      denied by grants: no RoleGrant covers"),
        "{text}"
    );
    assert!(text.contains("  writer      allowed\n"), "{text}");
    assert!(
        text.contains("  name: shop.api\nspec:\n  roles:\n  - reader\n"),
        "{text}"
    );
}
