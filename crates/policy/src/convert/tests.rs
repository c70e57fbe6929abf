use proptest::prelude::*;
use rolegate_core::decision::Decision;
use rolegate_core::layer::Mode;

use super::*;
use crate::fixtures::{NOW, base, namespace, pod, rules_of};

fn of(allowed: Option<&str>, permitted: Option<&str>) -> Namespace {
    Namespace {
        name: "shop".into(),
        allowed_roles: allowed.map(Into::into),
        permitted: permitted.map(Into::into),
        ..Namespace::default()
    }
}

fn converted(namespaces: &[Namespace], format: PatternFormat) -> Converted {
    convert(&Conversion {
        namespaces,
        workloads: &[],
        base: Some(&base()),
        format,
        allow_unannotated: false,
        taken: &[],
    })
}

fn roles(namespace: Namespace) -> (Vec<String>, Vec<String>) {
    let converted = converted(&[namespace], PatternFormat::Glob);
    let roles = converted.grants().flat_map(|grant| grant.roles.clone());
    let notes = converted
        .namespaces
        .iter()
        .flat_map(|one| one.notes.clone());
    (roles.collect(), notes.collect())
}

#[test]
fn table_of_annotations() {
    let other = "arn:aws:iam::210987654321:role/x";
    let exact: &[(Option<&str>, Option<&str>, &[&str])] = &[
        (
            Some(r#"["a", "/team/*", "arn:aws:iam::210987654321:role/x"]"#),
            None,
            &["a", "team/*", other],
        ),
        (Some(r#"["a*", "ab"]"#), None, &["a*"]),
        (None, Some("team-a"), &["team-a"]),
        // No ARN starts with a slash, so these are names after the base only.
        (None, Some("/.*"), &["*"]),
        (
            None,
            Some("arn:aws:iam::123456789012:role/(a|b-.*)"),
            &["a", "b-*"],
        ),
        (Some(r#"["a", "b", "c*"]"#), Some("a|c-1|d"), &["a", "c-1"]),
        (None, Some("^a$|^b$"), &["a", "b"]),
        (None, Some("(^a$)|(?:^team-.*$)"), &["a", "team-*"]),
        (Some("[\" a\\n\", \"b\"]"), Some("^a$|^b$"), &["a", "b"]),
    ];
    for (allowed, permitted, expected) in exact {
        let (mut found, notes) = roles(of(*allowed, *permitted));
        found.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{allowed:?} {permitted:?}");
        assert!(notes.is_empty(), "{notes:?}");
    }
    let cases = [
        (Some("[]"), None, "no role remains"),
        (Some("not a list"), None, "cannot be parsed"),
        (None, Some(""), "it is empty"),
        (None, Some("("), "not a usable"),
        (None, Some("team-[a-z]+"), "[a-z]+ has no glob"),
        (None, Some(".*"), "roles of every account"),
        (Some(r#"["a*"]"#), Some(".*b"), "is not a glob"),
        (Some(r#"["a b"]"#), None, "omitted"),
    ];
    for (allowed, permitted, part) in cases {
        let (_, notes) = roles(of(allowed, permitted));
        assert!(
            notes.iter().any(|note| note.contains(part)),
            "{allowed:?} {permitted:?}: {notes:?}"
        );
    }
    assert!(
        converted(&[of(None, None)], PatternFormat::Glob)
            .namespaces
            .is_empty()
    );
}

#[test]
fn the_yaml_tells_what_is_different() {
    let broken = of(None, Some("team-.+"));
    let fine = Namespace {
        name: "web".into(),
        ..of(Some(r#"["web-*"]"#), None)
    };
    let converted = converted(&[fine, broken], PatternFormat::Glob);
    let yaml = converted.yaml().unwrap();
    assert!(
        yaml.starts_with("# namespace shop\n# note: iam.amazonaws.com/permitted: "),
        "{yaml}"
    );
    assert!(
        yaml.ends_with(
            "\
---
# namespace web
apiVersion: rolegate.dev/v1alpha1
kind: RoleGrant
metadata:
  name: web
spec:
  roles:
  - web-*
  subjects:
  - namespaces:
    - web
"
        ),
        "{yaml}"
    );
    assert_eq!(
        rolegate_api::manifest::documents(&yaml)
            .unwrap()
            .documents
            .len(),
        1
    );
    assert_eq!(converted.notes().len(), 3);
}

#[test]
fn external_ids_of_pods_are_listed() {
    let mut with_id = pod("shop", "api", "a");
    with_id.role_request.external_id = Some("customer".into());
    let mut broken = pod("shop", "api", "a");
    broken.role_request.external_id = Some("not one".into());
    let namespaces = [of(Some(r#"["a"]"#), None), namespace("web", r#"["a"]"#)];
    let converted = convert(&Conversion {
        namespaces: &namespaces,
        workloads: &[with_id, broken],
        base: Some(&base()),
        format: PatternFormat::Glob,
        allow_unannotated: true,
        taken: &["shop"],
    });
    let grants: Vec<_> = converted.grants().collect();
    assert_eq!(grants[0].external_ids, ["customer"]);
    assert_eq!(&*grants[0].name, "shop-2");
    assert!(grants[1].external_ids.is_empty());
}

#[test]
fn open_namespaces_are_told_and_get_nothing() {
    let namespaces = [of(None, None)];
    let converted = convert(&Conversion {
        namespaces: &namespaces,
        workloads: &[],
        base: None,
        format: PatternFormat::Glob,
        allow_unannotated: true,
        taken: &[],
    });
    assert_eq!(converted.grants().count(), 0);
    assert!(converted.notes()[1].contains("suggest"));
}

const TRIED: &[&str] = &[
    "a",
    "b",
    "ab",
    "team/a",
    "team/b",
    "team-a",
    "arn:aws:iam::123456789012:role/a",
    "arn:aws:iam::210987654321:role/a",
    "arn:aws:iam::210987654321:role/team/a",
    "arn:aws-cn:iam::123456789012:role/b",
];

fn glob() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab*/-]{0,5}",
        "(/)?team[/-][ab*]{0,2}",
        "arn:aws:iam::(123456789012|210987654321|\\*):role/[ab*/]{0,4}",
    ]
}

fn expression() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\^?(a|b|ab|team|/|\\.\\*|\\.|\\(a\\|b\\)|\\[ab\\]|\\||\\+|-){0,6}\\$?",
        // Anchors and slashes within alternatives.
        "(\\^?/?(a|b|team/a|team-.*)\\$?\\|){0,3}\\^?/?(a|b|ab)\\$?",
        "(\\^|\\$|\\(|\\)|\\||\\?|a|b|/|\\.\\*|\\\\A|\\\\z){0,8}",
        "\\^?arn:aws:iam::(123456789012|210987654321|\\.\\*):role/(a|b|\\.\\*|team/|\\|){0,4}\\$?",
    ]
}

/// Asserts that the annotations allowed everything that the converted grants allow.
fn never_more(
    namespace: Namespace,
    format: PatternFormat,
    is_exact: bool,
) -> Result<(), TestCaseError> {
    let converted = converted(std::slice::from_ref(&namespace), format);
    let grants: Vec<_> = converted.grants().cloned().collect();
    let base = base();
    let mut before = rules_of(std::slice::from_ref(&namespace), &[], Mode::Off).rules;
    let compiled = NamespaceRules::new(&namespace, Some(&base), format);
    std::sync::Arc::make_mut(&mut before.namespaces).insert("shop".into(), compiled.into());
    let mut after = rules_of(std::slice::from_ref(&namespace), &grants, Mode::Enforce);
    prop_assert!(
        after.grants.invalid().is_empty(),
        "{:?}",
        after.grants.invalid()
    );
    after.rules.layers.remove(0);
    let message = converted.namespaces.iter().any(|one| !one.notes.is_empty());
    for role in TRIED {
        let pod = pod("shop", "api", role);
        let allows = |rules: &rolegate_core::decision::RuleSet| {
            matches!(rules.decide(&pod, NOW), Decision::Allow { .. })
        };
        let (was, is) = (allows(&before), allows(&after.rules));
        prop_assert!(was || !is, "{namespace:?} now allows {role}: {grants:?}");
        // Every role that was allowed is allowed, or a note mentions it.
        prop_assert!(
            !is_exact || message || is || !was,
            "{namespace:?} lost {role}: {grants:?}"
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn lists_of_globs_allow_the_same(list in prop::collection::vec(glob(), 0..4)) {
        let text = serde_json::to_string(&list).unwrap();
        never_more(of(Some(&text), None), PatternFormat::Glob, true)?;
    }

    #[test]
    fn lists_of_expressions_never_allow_more(list in prop::collection::vec(expression(), 0..3)) {
        let text = serde_json::to_string(&list).unwrap();
        never_more(of(Some(&text), None), PatternFormat::Regexp, true)?;
    }

    #[test]
    fn expressions_never_allow_more(text in expression()) {
        never_more(of(None, Some(&text)), PatternFormat::Glob, true)?;
    }

    #[test]
    fn both_annotations_never_allow_more(
        list in prop::collection::vec(glob(), 1..4), text in expression(),
    ) {
        let list = serde_json::to_string(&list).unwrap();
        never_more(of(Some(&list), Some(&text)), PatternFormat::Glob, true)?;
    }
}
