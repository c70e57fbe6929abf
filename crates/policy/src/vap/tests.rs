//! Tests of the exported objects. Their effect is tested with a real API server.

use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, TemplateKind};
use rolegate_core::grant::{SessionRules, Subject};
use rolegate_core::layer::LayerId;
use rolegate_core::selector::{Operator, Requirement, Selector};

use super::*;

fn config() -> RuleConfig {
    RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes::default().with(LayerId::Grants, Mode::Enforce),
        ..RuleConfig::default()
    }
}

fn grant(name: &str, role: &str, namespace: &str) -> Grant {
    Grant {
        name: name.into(),
        roles: vec![role.into()],
        subjects: vec![Subject {
            namespaces: vec![namespace.into()],
            ..Subject::default()
        }],
        ..Grant::default()
    }
}

fn exported(config: &RuleConfig, grants: &[Grant]) -> Result<Export, VapError> {
    export(&VapInput {
        config,
        keys: &AnnotationKeys::default(),
        grants,
        namespace: "rolegate-system",
    })
}

fn row(grant: &Grant) -> Vec<String> {
    let export = exported(&config(), std::slice::from_ref(grant)).unwrap();
    let text = data(&export)["row.0"].as_str().unwrap();
    text.split('\n').map(str::to_owned).collect()
}

fn find<'a>(export: &'a Export, kind: &str, name: &str) -> Option<&'a Value> {
    let mut documents = export.documents.iter();
    documents.find(|document| document["kind"] == kind && document["metadata"]["name"] == name)
}

/// Returns the data of the grant table.
fn data(export: &Export) -> &Value {
    &find(export, table::KIND.0, PARAMETERS).unwrap()["data"]
}

const POLICY: &str = "ValidatingAdmissionPolicy";
const BINDING: &str = "ValidatingAdmissionPolicyBinding";

#[test]
fn all_grants_are_in_one_object_and_found_by_namespace() {
    let grants = [grant("b", "reader", "shop"), grant("a", "all-*", "*")];
    let export = exported(&config(), &grants).unwrap();
    let tables = export
        .documents
        .iter()
        .filter(|document| document["kind"] == table::KIND.0);
    assert_eq!(tables.count(), 1);
    let data = data(&export);
    assert_eq!((&data["any"], &data["ns.shop"]), (&json!("0"), &json!("1")));
    let reference = &find(&export, BINDING, "rolegate-layer-grants").unwrap()["spec"]["paramRef"];
    assert_eq!(reference["name"], PARAMETERS);
    assert_eq!(reference["parameterNotFoundAction"], "Deny");
}

#[test]
fn rows_hold_what_is_left_to_compare() {
    let mut one = grant("team", "team/*-reader", "shop*");
    one.subjects[0].service_accounts = vec!["api.v1*".into()];
    one.subjects[0].namespace_selector = Some(Selector {
        labels: [("team", "blue")].into_iter().collect(),
        expressions: vec![Requirement {
            key: "old".into(),
            operator: Operator::DoesNotExist,
        }],
    });
    one.external_ids = vec!["customer-a".into(), "b".into()];
    assert_eq!(
        row(&one),
        [
            "team",
            "1",
            "arn:aws:iam::123456789012:role/team/",
            "-reader",
            "^(?:arn:aws:iam::123456789012:role/team/.*-reader)$",
            "^(?:shop.*)$",
            "^(?:api[.]v1.*)$",
            "In team blue;DoesNotExist old ",
            "",
            "customer-a b",
            "0",
            "",
        ]
    );
}

#[test]
fn hostile_texts_stay_in_their_fields() {
    let mut hostile = grant("a\n3\nx", "reader", "shop");
    hostile.external_ids = vec!["x\ny".into(), "a b".into(), "fine-1".into()];
    hostile.session = SessionRules {
        names: vec!["a\nb".into()],
        ..SessionRules::default()
    };
    hostile.subjects[0].pod_selector = Some(Selector {
        expressions: vec![Requirement {
            key: "a".into(),
            operator: Operator::NotIn(vec!["x;In b y\nz".into()]),
        }],
        ..Selector::default()
    });
    let row = row(&hostile);
    assert_eq!(row.len(), 12, "{row:?}");
    assert_eq!(row[0], "a-3-x");
    assert_eq!((&*row[8], &*row[9], &*row[11]), ("", "fine-1", "^$"));
}

#[test]
fn what_nobody_can_meet_grants_nothing() {
    let mut impossible = grant("a", "reader", "shop");
    impossible.subjects[0].service_accounts = vec!["Not A Name".into()];
    let export = exported(&config(), &[impossible]).unwrap();
    assert!(data(&export)["row.0"].is_null());
    let invalid = Grant::default();
    let export = exported(&config(), &[invalid]).unwrap();
    assert!(
        export.unsaid[0].contains("is not valid"),
        "{:?}",
        export.unsaid
    );
}

#[test]
fn layers_keep_their_modes_apart() {
    let mut config = config();
    config.modes[LayerId::Grants] = Mode::Audit;
    let export = exported(&config, &[]).unwrap();
    let binding = |name| &find(&export, BINDING, name).unwrap()["spec"];
    let policy = |name| &find(&export, POLICY, name).unwrap()["spec"];
    let (grants, namespace) = ("rolegate-layer-grants", "rolegate-layer-namespace");
    assert_eq!(
        binding(grants)["validationActions"],
        json!(["Warn", "Audit"])
    );
    assert_eq!(policy(grants)["failurePolicy"], "Ignore");
    assert_eq!(binding(namespace)["validationActions"], json!(["Deny"]));
    assert_eq!(policy(namespace)["failurePolicy"], "Fail");
    config.modes = Modes::OFF.with(LayerId::Rego, Mode::Enforce);
    let export = exported(&config, &[]).unwrap();
    assert!(find(&export, POLICY, namespace).is_none());
    assert!(find(&export, POLICY, grants).is_none());
    assert!(find(&export, table::KIND.0, PARAMETERS).is_none());
    assert!(find(&export, POLICY, "rolegate-request").is_some());
    assert!(export.unsaid.iter().any(|text| text.starts_with("Rego")));
}

#[test]
fn each_layer_has_a_policy_or_a_reason() {
    for layer in LayerId::ALL {
        let mut config = config();
        config.modes = Modes::OFF.with(layer, Mode::Enforce);
        let export = exported(&config, &[]).unwrap();
        let has_policy = find(&export, POLICY, &format!("rolegate-layer-{layer}")).is_some();
        let reason = not_expressed(layer);
        assert_ne!(has_policy, reason.is_some(), "{layer}");
        if let Some(reason) = reason {
            let is_reported = export.unsaid.iter().any(|sentence| sentence == reason);
            assert!(is_reported, "{layer}: {:?}", export.unsaid);
        }
    }
}

#[test]
fn threat_07_namespaces_are_spared_by_the_label_that_nobody_chooses() {
    let export = exported(&config(), &[]).unwrap();
    for binding in export
        .documents
        .iter()
        .filter(|document| document["kind"] == BINDING)
    {
        let exempt = &binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"];
        if binding["metadata"]["name"] == "rolegate-namespaces" {
            assert!(exempt.is_null());
        } else {
            assert_eq!(exempt[0]["key"], "kubernetes.io/metadata.name");
        }
    }
}

#[test]
fn threat_23_no_condition_skips_a_request() {
    let export = exported(&config(), &[grant("a", "reader", "shop")]).unwrap();
    for document in &export.documents {
        assert!(document["spec"]["matchConditions"].is_null());
    }
}

#[test]
fn exceeding_the_budget_is_an_error_without_omissions() {
    let many = |count: usize, namespace: &str| -> Vec<_> {
        let all = 0..count;
        all.map(|number| grant(&format!("g{number}"), &format!("r-*-{number}"), namespace))
            .collect()
    };
    let config = config();
    assert!(exported(&config, &many(1000, "*")).is_ok());
    assert!(matches!(
        exported(&config, &many(table::MAX_ROWS + 1, "*")),
        Err(VapError::TooMany { .. })
    ));
    let apart: Vec<_> = (0..3000)
        .map(|number| grant(&format!("g{number}"), "reader", &format!("ns-{number}")))
        .collect();
    assert!(exported(&config, &apart).is_ok());
    let large: Vec<_> = (0..9000)
        .map(|number| grant(&format!("g{number}"), "reader", &format!("ns-{number}")))
        .collect();
    assert!(matches!(
        exported(&config, &large),
        Err(VapError::TooLarge { .. })
    ));
}

#[test]
fn what_cel_cannot_follow_is_told() {
    let mut config = config();
    config.templates = vec![TemplateKind {
        group: "example.com".into(),
        kind: "Deep".into(),
        resource: "deeps".into(),
        paths: vec!["spec.*.jobs.*.template".into(), "spec.template".into()],
        metadata: vec!["spec.podMetadata".into(), "spec.*.jobs.*.metadata".into()],
    }];
    let export = exported(&config, &[]).unwrap();
    let message: Vec<_> = export
        .unsaid
        .iter()
        .filter(|text| text.contains("Deep"))
        .collect();
    assert_eq!(message.len(), 2);
    assert!(
        message[0].contains("spec.*.jobs.*.template")
            && message[1].contains("spec.*.jobs.*.metadata")
    );
}

#[test]
fn the_text_says_what_the_documents_say() {
    let grants = [grant("a", "all-*", "*")];
    let export = exported(&config(), &grants).unwrap();
    let text = export.yaml().unwrap();
    let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(read, export.documents);
    for sentence in &export.unsaid {
        assert!(text.contains(sentence.as_str()), "{sentence}");
    }
}
