//! The rules exported as ValidatingAdmissionPolicies, enforced by a real API server without
//! rolegate: all cases of the shared table must have the webhook's verdicts, and a thousand grants
//! must stay within CEL's budget.

mod driver;

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use rolegate_api::{RoleGrant, RolegateConfig};
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, PERMITTED};
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::decision::ReservedRole;
use rolegate_core::grant::{Grant, Subject};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::{Namespace, NamespaceRules, rule_text};
use rolegate_core::pattern::PatternFormat;
use rolegate_core::selector::Selector;
use rolegate_policy::vap::{Export, PARAMETERS, VapInput, export};
use rolegate_testkit::cases::{Case, Cel, User, Verdict, World, load_all};
use rolegate_testkit::{eventually, repository};
use serde_json::{Value, json};

use driver::{Answer, DEADLINE, HOME, Server};

/// Files of the table whose cases CEL expresses completely, although it does not have to.
const SAID: &[&str] = &["rules", "scheduling", "services"];
/// Cases that never reach admission on a real API server, which rejects such objects itself:
/// link-local addresses, and changes of immutable fields.
const IMPOSSIBLE: &[&str] = &[
    "a Service that is there already loses a finalizer",
    "a Service is deleted",
    "threat 21, IPv4 within IPv6",
    "threat 21, a Service at the metadata address",
    "threat 21, a Service is changed to the metadata address",
    "threat 21, the address of container credentials",
    "threat 21, the addresses of Pod Identity",
    "a Job is changed to a role that is not granted",
    "threat 4, a pod is updated to tolerate everything",
];

/// A server that knows the kind of the grants' table, also for worlds without the layer `grants`.
async fn start() -> Server {
    let server = Server::start().await;
    // The other definitions are placeholders that accept the objects of all cases.
    let kinds = repository().join("deploy/crds.yaml");
    let kinds = std::fs::read_to_string(kinds).unwrap();
    let mut kinds = kinds.split("---\n");
    let table = kinds.find(|kind| kind.contains("RoleGrantTable")).unwrap();
    server.apply_all(table).await;
    server
}

/// Exports the rules of a world.
fn exported(world: &World) -> Export {
    let of_kind = |kind: &'static str| {
        let all = world.documents.iter();
        all.filter(move |document| document["kind"] == kind)
            .cloned()
    };
    let config = of_kind("RolegateConfig").next().unwrap();
    let config: RolegateConfig = serde_json::from_value(config).unwrap();
    let config = RuleConfig::try_from(&config).unwrap();
    let grants: Vec<Grant> = of_kind("RoleGrant")
        .map(|grant| Grant::from(&serde_json::from_value::<RoleGrant>(grant).unwrap()))
        .collect();
    export(&VapInput {
        config: &config,
        keys: &AnnotationKeys::default(),
        grants: &grants,
        namespace: HOME,
    })
    .unwrap()
}

/// The namespaces of a world, with the service accounts that its pods run as.
async fn make_namespaces(server: &Server, world: &World) {
    for document in world
        .documents
        .iter()
        .filter(|document| document["kind"] == "Namespace")
    {
        server
            .cluster
            .apply_manifest(&document.to_string())
            .await
            .unwrap();
        let name = document["metadata"]["name"].as_str().unwrap();
        for account in ["default", "api", "web"] {
            server
                .cluster
                .create_service_account(name, account)
                .await
                .unwrap();
        }
    }
}

/// Returns true if a policy matches the subresource.
fn is_matched(export: &Export, subresource: &str) -> bool {
    let ending = format!("/{subresource}");
    let policies = export.documents.iter();
    let mut rules = policies.filter_map(|policy| {
        policy
            .pointer("/spec/matchConstraints/resourceRules")?
            .as_array()
    });
    rules.any(|rules| {
        let resources = rules
            .iter()
            .filter_map(|rule| rule["resources"].as_array())
            .flatten();
        let mut names = resources.filter_map(Value::as_str);
        names.any(|name| name.ends_with(&ending))
    })
}

/// Returns the difference between a response and the expected verdict.
fn fault(case: &Case, answer: &Answer) -> Option<String> {
    let message = answer.message();
    // Steps after admission fail in a dry run.
    let is_late = matches!(answer.status, StatusCode::CONFLICT | StatusCode::NOT_FOUND);
    let is_allowed = answer.status.is_success() || is_late;
    let warned = answer
        .warnings
        .iter()
        .any(|warning| warning.contains("rolegate-"));
    match case.expect.admission {
        _ if message.contains("resulted in error") => Some(format!("an error: {message}")),
        Verdict::Allow if !is_allowed => Some(format!("refused: {message}")),
        Verdict::Deny if !answer.is_refused_by_policy() => {
            Some(format!("not refused: {} {message}", answer.status))
        }
        Verdict::Allow if warned == case.expect.warns.is_empty() => {
            Some(format!("warnings: {:?}", answer.warnings))
        }
        _ => None,
    }
}

#[tokio::test]
async fn policies_and_the_webhook_say_the_same_about_every_case() {
    let cases: Vec<_> = load_all()
        .unwrap()
        .into_iter()
        .filter(|case| case.expect.cel == Cel::Same || SAID.contains(&&*case.file))
        .collect();
    let server = start().await;
    server.define_kinds(&cases).await;
    let worlds: BTreeMap<_, _> = cases
        .iter()
        .map(|case| (&case.world.name, &case.world))
        .collect();
    let (mut before, mut faults, mut impossible) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    for (name, world) in worlds {
        make_namespaces(&server, world).await;
        let export = exported(world);
        server.enforce(name, &export, &mut before).await;
        for case in cases.iter().filter(|case| case.world.name == *name) {
            let sub = &*case.subresource;
            if !sub.is_empty() && !is_matched(&export, sub) {
                assert_eq!(case.expect.admission, Verdict::Allow, "{}", case.name);
                continue;
            }
            match server.run(case).await {
                None => drop(impossible.insert(case.name.clone())),
                Some(answer) => faults.extend(
                    fault(case, &answer)
                        .map(|fault| format!("{}: {}: {fault}", case.file, case.name)),
                ),
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    let known: BTreeSet<_> = IMPOSSIBLE.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(impossible, known);
}

/// Creates a pod with a role in a dry run, as an ordinary user.
async fn try_pod(server: &Server, namespace: &str, role: &str) -> Answer {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "app", "annotations": { "iam.amazonaws.com/role": role } },
        "spec": { "serviceAccountName": "api", "containers": [{ "name": "app", "image": "app:1" }] },
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    server
        .ask(Method::POST, &path, Some(&pod), Some(&User::default()))
        .await
}

/// Exports only grants.
fn exported_grants(grants: &[Grant]) -> Export {
    let config = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes::OFF.with(LayerId::Grants, Mode::Enforce),
        reserved_roles: vec![ReservedRole {
            account: None,
            name: "TEAM-a-0500-b-reader".into(),
        }],
        ..RuleConfig::default()
    };
    export(&VapInput {
        config: &config,
        keys: &AnnotationKeys::default(),
        grants,
        namespace: HOME,
    })
    .unwrap()
}

fn grant(name: &str, role: &str, subject: Subject) -> Grant {
    Grant {
        name: name.into(),
        roles: vec![role.into()],
        subjects: vec![subject],
        ..Grant::default()
    }
}

fn everyone() -> Subject {
    Subject {
        namespaces: vec!["*".into()],
        ..Subject::default()
    }
}

/// A world of one namespace with labels.
fn shop() -> World {
    World {
        name: "shop".into(),
        documents: vec![json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": "shop", "labels": { "team": "blue" } },
        })],
    }
}

#[tokio::test]
async fn a_thousand_globs_that_all_count_in_one_namespace_stay_within_the_budget() {
    let server = start().await;
    make_namespaces(&server, &shop()).await;
    let grants: Vec<_> = (0..1000)
        .map(|number| {
            let subject = Subject {
                namespaces: vec!["s*p".into()],
                service_accounts: vec!["a*i".into()],
                namespace_selector: Some(Selector {
                    labels: [("team", "blue")].into_iter().collect(),
                    ..Selector::default()
                }),
                ..Subject::default()
            };
            // All rows have the same prefix and the same longest literal text, so that each pattern
            // is matched.
            let role = format!("team-*-{number:04}-*-reader");
            grant(&format!("grant-{number}"), &role, subject)
        })
        .collect();
    let mut names = BTreeSet::new();
    server
        .enforce("thousand", &exported_grants(&grants), &mut names)
        .await;
    for role in ["team-a-0000-b-reader", "team-a-0999-b-reader"] {
        let answer = try_pod(&server, "shop", role).await;
        assert!(answer.status.is_success(), "{role}: {}", answer.message());
    }
    for (role, says) in [
        (
            "team-a-1000-b-reader",
            "no RoleGrant covers the role for service account api in namespace shop",
        ),
        (
            "team-a-0500-b-reader",
            "belongs to a node or to rolegate itself",
        ),
    ] {
        let answer = try_pod(&server, "shop", role).await;
        let message = answer.message();
        assert!(message.contains(says), "{role}: {message}");
    }
}

#[tokio::test]
async fn rule_07_without_the_table_everything_is_refused_and_no_old_one_comes_back() {
    let server = start().await;
    make_namespaces(&server, &shop()).await;
    let of = |role| exported_grants(&[grant("all", role, everyone())]);
    let mut names = BTreeSet::new();
    server.enforce("first", &of("*"), &mut names).await;
    let answer = try_pod(&server, "shop", "reader").await;
    assert!(answer.status.is_success(), "{}", answer.message());

    let table =
        format!("/apis/rolegate.dev/v1alpha1/namespaces/{HOME}/rolegranttables/{PARAMETERS}");
    server.admin(Method::DELETE, &table, None).await;
    eventually(DEADLINE, async || {
        let answer = try_pod(&server, "shop", "reader").await;
        anyhow::ensure!(answer.is_refused_by_policy(), "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();

    // All policies that read tables are absent for a while, and return with other grants.
    server
        .enforce(
            "none",
            &Export {
                documents: Vec::new(),
                unsaid: Vec::new(),
            },
            &mut names,
        )
        .await;
    for name in std::mem::take(&mut names) {
        let base = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        server
            .admin(Method::DELETE, &format!("{base}/{name}"), None)
            .await;
    }
    eventually(DEADLINE, async || {
        let path = format!("/api/v1/namespaces/{HOME}/configmaps?dryRun=All");
        let object = json!({ "metadata": { "name": "probe-none" } });
        let answer = server.admin(Method::POST, &path, Some(&object)).await;
        anyhow::ensure!(answer.status.is_success(), "{}", answer.message());
        Ok(())
    })
    .await
    .unwrap();
    server.enforce("second", &of("writer"), &mut names).await;
    let answer = try_pod(&server, "shop", "reader").await;
    assert!(answer.is_refused_by_policy(), "{}", answer.status);
    let answer = try_pod(&server, "shop", "writer").await;
    assert!(answer.status.is_success(), "{}", answer.message());
}

/// Annotations of namespaces (key, value), and true if the API server may deny a role although
/// rolegate parses the annotation.
const PATTERNS: &[(&str, &str, bool)] = &[
    (ALLOWED_ROLES, r#"["team-*"]"#, false),
    (ALLOWED_ROLES, r#"[]"#, false),
    (ALLOWED_ROLES, r#"  ["x" , "team-a" ]  "#, false),
    (ALLOWED_ROLES, r#"["team-a",]"#, false),
    (ALLOWED_ROLES, r#"["team-a" "x"]"#, false),
    (ALLOWED_ROLES, r#"["team.a"]"#, false),
    (ALLOWED_ROLES, r#"["/path/*", "a(b"]"#, false),
    (ALLOWED_ROLES, r#"["arn:aws:iam::*:role/team-a"]"#, false),
    (
        ALLOWED_ROLES,
        r#"["ARN:aws:iam::123456789012:role/team-a"]"#,
        false,
    ),
    (ALLOWED_ROLES, r#"["*-a", 7]"#, false),
    (ALLOWED_ROLES, r#"["team\u002da"]"#, true),
    (ALLOWED_ROLES, r#"["^team-[a-c]$", "[^/]+/x"]"#, false),
    (ALLOWED_ROLES, r#"["team-a|other"]"#, false),
    (ALLOWED_ROLES, r#"["x)|(?:.*"]"#, false),
    (PERMITTED, "team-.*", false),
    (PERMITTED, ".*team.*", false),
    (PERMITTED, "", false),
    (PERMITTED, "^team-a$", false),
    (PERMITTED, "x)|(.*", false),
    (PERMITTED, "(", false),
    (PERMITTED, "(?i)TEAM-A", false),
    (PERMITTED, "(?:path/)?(x|team-[ab])", false),
    (PERMITTED, r"arn:aws:iam::\d{12}:role/[\w-]+", false),
    (PERMITTED, r"arn:aws:iam::210987654321:role/.*", false),
    // Anchors within alternatives, slashes, and blanks around a text.
    (PERMITTED, "^team-a$|^team-b$", false),
    (PERMITTED, "^team-a|b$", false),
    (PERMITTED, "(^x$)|(?:^team-b$)", false),
    (PERMITTED, r"\Ateam-a\z", false),
    (PERMITTED, "^/team-a$", false),
    (PERMITTED, "^/?team-a$", false),
    (PERMITTED, "/team-a|team-b", false),
    (PERMITTED, "team-a$x|y", false),
    (
        PERMITTED,
        "team-a|arn:aws:iam::123456789012:role/team-b",
        false,
    ),
    (PERMITTED, "^arn:.*/team-a$|^arn:.*/team-b$", false),
    (PERMITTED, "team-a\n", false),
    (PERMITTED, "\u{a0}team-a\t", false),
    (ALLOWED_ROLES, "\n[\"team-a\"]\n", false),
    (ALLOWED_ROLES, "[\" team-a \", \"\u{a0}path/x\"]", false),
    (ALLOWED_ROLES, r#"["^team-a$|^team-b$"]"#, false),
    (ALLOWED_ROLES, r#"["^/?team-a$", "^path/x$"]"#, false),
    (ALLOWED_ROLES, "\n", false),
    // CEL and rolegate parse these differently, so the policy denies them.
    (PERMITTED, r"team-[a-z&&[^a]]", true),
    (PERMITTED, r"(?s:team-.)", true),
    (PERMITTED, r"(?x) team-a # a", true),
    (PERMITTED, r"\Qteam-a\E", true),
    (PERMITTED, r"\bteam-a\b", true),
    (PERMITTED, r"team-a{,1}", true),
    (PERMITTED, r"\p{L}+-a", true),
];

#[tokio::test]
async fn patterns_of_namespaces_mean_the_same_to_the_api_server_or_are_refused() {
    let server = start().await;
    let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
    let mut names = BTreeSet::new();
    for format in [PatternFormat::Glob, PatternFormat::Regexp] {
        let config = RuleConfig {
            base: Some(base.clone()),
            restriction_format: format,
            ..RuleConfig::default()
        };
        let export = export(&VapInput {
            config: &config,
            keys: &AnnotationKeys::default(),
            grants: &[],
            namespace: HOME,
        })
        .unwrap();
        let name = format!("{format:?}").to_lowercase();
        server.enforce(&name, &export, &mut names).await;
        for (number, (key, text, may_refuse)) in PATTERNS.iter().enumerate() {
            let namespace = format!("{name}-{number}");
            let annotations = [(*key, *text)];
            let created = server.cluster.create_namespace(&namespace, &annotations);
            created.await.unwrap();
            let api = server.cluster.create_service_account(&namespace, "api");
            api.await.unwrap();
            let value = |wanted| (*key == wanted).then(|| rule_text(text));
            let written = Namespace {
                name: namespace.as_str().into(),
                allowed_roles: value(ALLOWED_ROLES),
                permitted: value(PERMITTED),
                ..Namespace::default()
            };
            let rules = NamespaceRules::new(&written, Some(&base), format);
            let compiled = rules.annotations();
            let patterns = compiled.allowed.as_ref().or(compiled.permitted.as_ref());
            let patterns = patterns.unwrap().as_deref().unwrap_or_default();
            for role in ["team-a", "team-b", "path/x", "TEAM-A"] {
                let arn = format!("{}{role}", base.as_str());
                let is_allowed = patterns.iter().any(|pattern| pattern.matches(&arn));
                let answer = try_pod(&server, &namespace, role).await;
                let is_refused = answer.is_refused_by_policy();
                assert!(
                    is_refused || answer.status.is_success(),
                    "{}",
                    answer.message()
                );
                if is_refused == is_allowed {
                    let message = answer.message();
                    let told = format!("{format:?} {text} on {role}: {message}");
                    assert!(is_refused && *may_refuse, "{told}");
                }
            }
        }
    }
}
