//! Tests of the webhook configuration, and that the shipped one is up to date.

use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::{RuleConfig, Subjects, TemplateKind};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_inventory::offline::{OfflineOptions, load};
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};
use serde_json::{Value, json};

use crate::world::Rules;

fn made(rules: &Rules, change: impl FnOnce(&mut Registration<'_>)) -> Value {
    let mut registration = Registration {
        config: &rules.config,
        keys: &rules.keys,
        has_default_role: false,
        has_rego: false,
        endpoint: Endpoint::Service {
            namespace: "rolegate-system",
            name: "rolegate-admission",
            path: "/validate",
            port: 443,
        },
        ca_bundle: b"PEM",
        own_namespace: "rolegate-system",
        requires_injection: Mode::Off,
    };
    change(&mut registration);
    webhook_configuration(&registration)
}

fn webhook<'a>(configuration: &'a Value, name: &str) -> &'a Value {
    let mut webhooks = configuration["webhooks"].as_array().unwrap().iter();
    let name = format!("{name}.rolegate.dev");
    webhooks
        .find(|webhook| webhook["name"] == name)
        .unwrap_or_else(|| panic!("{name}"))
}

fn conditions(webhook: &Value) -> Vec<&str> {
    let conditions = webhook["matchConditions"].as_array().into_iter().flatten();
    conditions
        .map(|condition| condition["name"].as_str().unwrap())
        .collect()
}

#[test]
fn every_webhook_fails_closed_and_within_seconds() {
    for world in ["annotations", "grants", "layers", "guarded"] {
        let configuration = made(&Rules::of(world), |_| {});
        let mut names = std::collections::BTreeSet::new();
        for webhook in configuration["webhooks"].as_array().unwrap() {
            // Its denials would grant nothing in any case.
            let expected = match webhook["name"].as_str() {
                Some("rule-validity.rolegate.dev") => "Ignore",
                _ => "Fail",
            };
            assert_eq!(webhook["failurePolicy"], expected);
            assert_eq!(webhook["timeoutSeconds"], 5);
            assert_eq!(webhook["sideEffects"], "None");
            assert_eq!(webhook["matchPolicy"], "Equivalent");
            assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]));
            assert_eq!(webhook["clientConfig"]["caBundle"], "UEVN");
            assert!(
                webhook["matchConditions"]
                    .as_array()
                    .is_none_or(|all| all.len() <= 64)
            );
            let name = webhook["name"].as_str().unwrap();
            assert!(
                name.split('.').count() >= 3 && names.insert(name.to_owned()),
                "{name}"
            );
        }
    }
}

#[test]
fn own_and_exempt_namespaces_are_excluded_by_name() {
    let rules = Rules::of("layers");
    let configuration = made(&rules, |_| {});
    let selector = &webhook(&configuration, "pods")["namespaceSelector"];
    let expected = json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name",
        "operator": "NotIn", "values": ["kube-system", "rolegate-system"]}]});
    assert_eq!(*selector, expected);
    let namespaces = webhook(&configuration, "namespaces");
    assert_eq!(namespaces["namespaceSelector"], Value::Null);
}

#[test]
fn every_kind_and_subresource_is_registered() {
    let configuration = made(&Rules::of("grants"), |_| {});
    let mut asked = std::collections::BTreeSet::new();
    for webhook in configuration["webhooks"].as_array().unwrap() {
        for rule in webhook["rules"].as_array().unwrap() {
            for resource in rule["resources"].as_array().unwrap() {
                let group = rule["apiGroups"][0].as_str().unwrap();
                asked.insert(format!("{group}/{}", resource.as_str().unwrap()));
            }
        }
    }
    for wanted in [
        "/pods",
        "/pods/status",
        "/pods/binding",
        "/bindings",
        "/pods/ephemeralcontainers",
        "/podtemplates",
        "/replicationcontrollers",
        "apps/deployments",
        "apps/replicasets",
        "apps/statefulsets",
        "apps/daemonsets",
        "batch/jobs",
        "batch/cronjobs",
        "/serviceaccounts",
        "/serviceaccounts/token",
        "zalando.org/awsiamroles",
        "/services",
        "/services/status",
        "/namespaces",
        "/namespaces/status",
        "/namespaces/finalize",
        "rolegate.dev/rolegrants",
        "rolegate.dev/rolegateconfigs",
        "/configmaps",
        "argoproj.io/rollouts",
        "tekton.dev/taskruns",
        "kubeflow.org/pytorchjobs",
        "serving.knative.dev/services",
    ] {
        assert!(asked.contains(wanted), "{wanted} of {asked:?}");
    }
    assert!(
        !asked
            .iter()
            .any(|kind| kind.contains("eviction") || kind.contains("scale"))
    );
}

#[test]
fn threat_23_conditions_give_way_to_default_roles_and_policies() {
    let rules = Rules::of("grants");
    let plain = made(&rules, |_| {});
    let by_default = made(&rules, |registration| registration.has_default_role = true);
    let with_rego = made(&rules, |registration| registration.has_rego = true);
    for name in [
        "pods",
        "workloads",
        "cronjobs",
        "pod-templates",
        "rollouts.argoproj.io",
    ] {
        assert_eq!(
            conditions(webhook(&plain, name)),
            ["changed", "names-role"],
            "{name}"
        );
        assert_eq!(
            conditions(webhook(&by_default, name)),
            ["changed"],
            "{name}"
        );
        assert_eq!(conditions(webhook(&with_rego, name)), [""; 0], "{name}");
    }
    // A kubelet's writes of status never leave the API server for it.
    assert_eq!(conditions(webhook(&with_rego, "pod-status")), ["changed"]);
}

#[test]
fn rules_are_guarded_where_their_writers_are_configured() {
    let names = |world: &str| {
        let configuration = made(&Rules::of(world), |_| {});
        let all = configuration["webhooks"].as_array().unwrap();
        all.iter()
            .map(|webhook| webhook["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let with = names("guarded");
    assert!(with.contains(&"rules.rolegate.dev".into()));
    assert!(with.contains(&"policies.rolegate.dev".into()));
    let without = names("annotations");
    assert!(!without.contains(&"rules.rolegate.dev".into()));
    assert!(!without.contains(&"policies.rolegate.dev".into()));
    let configuration = made(&Rules::of("guarded"), |_| {});
    let selector = &webhook(&configuration, "policies")["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(
        (&selector["operator"], &selector["values"]),
        (&json!("In"), &json!(["opa"]))
    );
}

#[test]
fn a_cluster_can_be_recovered_without_the_webhook() {
    let configuration = made(&Rules::of("guarded"), |_| {});
    for name in ["namespaces", "rules", "policies"] {
        let conditions = conditions(webhook(&configuration, name));
        assert!(conditions.contains(&"not-a-master"), "{name}");
    }
}

#[test]
fn renamed_keys_are_in_the_conditions() {
    let mut rules = Rules::of("grants");
    rules.keys = AnnotationKeys {
        role: "example.com/\"role".into(),
        allowed_roles: "example.com/allowed".into(),
        ..AnnotationKeys::default()
    };
    let configuration = made(&rules, |_| {});
    let text = |name: &str| webhook(&configuration, name)["matchConditions"].to_string();
    assert!(
        text("pods").contains(r#"example.com/\\\"role"#),
        "{}",
        text("pods")
    );
    assert!(text("namespaces").contains("example.com/allowed"));
}

#[test]
fn a_url_can_stand_in_for_a_service() {
    let configuration = made(&Rules::of("annotations"), |registration| {
        registration.endpoint = Endpoint::Url("https://127.0.0.1:8443/validate");
        registration.ca_bundle = b"";
    });
    let client = &webhook(&configuration, "pods")["clientConfig"];
    assert_eq!(*client, json!({"url": "https://127.0.0.1:8443/validate"}));
}

/// An unavailable webhook must not deny what the rules would allow.
#[test]
fn webhooks_fail_closed_only_if_a_layer_is_enforced() {
    let policies = |change: fn(&mut RuleConfig)| {
        let mut config = RuleConfig::default();
        config.modes[LayerId::Namespace] = Mode::Audit;
        config.modes[LayerId::Grants] = Mode::Audit;
        change(&mut config);
        let made = webhook_configuration(&Registration {
            config: &config,
            keys: &AnnotationKeys::default(),
            has_default_role: false,
            has_rego: false,
            endpoint: Endpoint::Url("https://127.0.0.1"),
            ca_bundle: b"",
            own_namespace: "rolegate-system",
            requires_injection: Mode::Off,
        });
        let webhooks = made["webhooks"].as_array().unwrap();
        let policies = webhooks.iter().map(|webhook| {
            let text = |field: &str| webhook[field].as_str().unwrap().to_owned();
            (text("name"), text("failurePolicy"))
        });
        policies.collect::<Vec<_>>()
    };
    let ignored = policies(|_| {});
    assert!(ignored.len() > 5);
    assert!(
        ignored.iter().all(|(_, policy)| policy == "Ignore"),
        "{ignored:?}"
    );
    let enforcing: [fn(&mut RuleConfig); 6] = [
        |config| config.modes[LayerId::Namespace] = Mode::Enforce,
        |config| config.modes[LayerId::Grants] = Mode::Enforce,
        |config| config.modes[LayerId::Rego] = Mode::Enforce,
        |config| config.namespace_writers = Some(Subjects::default()),
        |config| config.rule_writers = Some(Subjects::default()),
        |config| config.guard_scheduling = true,
    ];
    for change in enforcing {
        for (name, policy) in policies(change) {
            let expected = match &*name {
                "rule-validity.rolegate.dev" => "Ignore",
                _ => "Fail",
            };
            assert_eq!(policy, expected, "{name}");
        }
    }
}

/// This world requires a policy that does not exist, and has the layer off.
#[test]
fn policies_that_are_off_want_to_see_nothing() {
    let world = rolegate_testkit::cases::world("guarded").unwrap();
    let offline = load(&world.documents, OfflineOptions::default()).unwrap();
    let snapshot = offline.writer.rules().load().clone();
    assert_eq!(snapshot.config.modes[LayerId::Rego], Mode::Off);
    assert!(snapshot.policies.has_admission_policies());
    assert!(!snapshot.asks_policies_at_admission());
}

#[test]
fn a_custom_kind_is_sent_when_what_its_templates_are_in_changes() {
    let mut rules = Rules::of("grants");
    std::sync::Arc::make_mut(&mut rules.config).templates = vec![TemplateKind {
        group: "example.com".into(),
        kind: "Fleet".into(),
        resource: "fleets".into(),
        paths: vec!["workers.*.template".into(), ".".into()],
        metadata: vec!["podMetadata.own".into()],
    }];
    let configuration = made(&rules, |_| {});
    let fleets = webhook(&configuration, "fleets.example.com");
    assert_eq!(conditions(fleets), ["changed", "names-role"]);
    let expression = |place: usize| {
        fleets["matchConditions"][place]["expression"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    // The first fields of the paths. For the path of the whole object, this is the field with its
    // service account.
    for field in ["workers", "podMetadata", "spec"] {
        let differs = format!(
            r#"("{field}" in object ? [object["{field}"]] : []) != ("{field}" in oldObject ? "#
        );
        assert!(expression(0).contains(&differs), "{}", expression(0));
    }
    let names = expression(1);
    for part in [
        r#""workers" in object"#,
        r#""template" in v1"#,
        r#""podMetadata" in object"#,
        r#""own" in v0"#,
        r#"["iam.amazonaws.com/role"].exists(k, k in v1.annotations)"#,
        r#"["iam.amazonaws.com/role"].exists(k, k in object.metadata.annotations)"#,
    ] {
        assert!(names.contains(part), "{part}: {names}");
    }
}

#[test]
fn every_annotation_that_decides_about_a_pods_role_is_looked_at() {
    let rules = Rules::of("grants");
    let configuration = made(&rules, |_| {});
    let keys = AnnotationKeys::default();
    for name in ["pods", "pod-status", "bindings"] {
        let webhook = webhook(&configuration, name);
        let expression = webhook["matchConditions"][0]["expression"]
            .as_str()
            .unwrap();
        for key in [
            &*keys.role,
            &*keys.external_id,
            rolegate_core::annotation::SESSION_NAME,
            rolegate_core::annotation::MIRROR,
        ] {
            assert!(expression.contains(&format!("{key:?}")), "{name}: {key}");
        }
    }
}
