use std::path::{Path, PathBuf};

use rolegate_core::arn::BaseArn;
use rolegate_core::attribution::{Attribution, AttributionRules, SourceIdentity, WorkloadTags};
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::grant::{CompiledGrant, Grant, GrantError};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::pattern::PatternFormat;
use serde_json::{Value, json};

use super::*;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(name)
}

fn example<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(deploy(name)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn base() -> BaseArn {
    BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap()
}

fn grant(spec: Value) -> Result<Grant, serde_json::Error> {
    let object = json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
        "metadata": {"name": "one"}, "spec": spec});
    Ok(Grant::from(&serde_json::from_value::<RoleGrant>(object)?))
}

fn config(spec: Value) -> Result<RuleConfig, ConfigError> {
    let object = json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
        "metadata": {"name": "cluster"}, "spec": spec});
    RuleConfig::try_from(&serde_json::from_value::<RolegateConfig>(object).unwrap())
}

/// If `UPDATE_CRDS` is set, the test writes the file instead.
#[test]
fn the_shipped_definitions_are_those_of_the_types() {
    let path = deploy("crds.yaml");
    let made = crds_yaml().unwrap();
    if std::env::var_os("UPDATE_CRDS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == made,
        "deploy/crds.yaml is out of date: run the test with UPDATE_CRDS=1"
    );
}

/// The API server refuses CEL rules whose cost it cannot bound.
#[test]
fn every_list_map_and_text_of_a_spec_is_bounded() {
    fn walk(path: &str, schema: &Value) {
        let is = |kind: &str| schema["type"] == kind;
        let bounded = match () {
            () if is("array") => schema["maxItems"].is_u64(),
            () if is("string") => schema["maxLength"].is_u64() || schema["enum"].is_array(),
            () if schema.get("additionalProperties").is_some() => schema["maxProperties"].is_u64(),
            () => true,
        };
        assert!(bounded, "{path} has no bound: {schema}");
        assert!(schema.get("nullable").is_none(), "{path} may be null");
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                walk(&format!("{path}[]"), inner);
            }
        }
    }
    let text = crds_yaml().unwrap();
    let mut count = 0;
    for document in text.split("---\n") {
        let definition: Value = serde_saphyr::from_str(document).unwrap();
        if definition["spec"]["names"]["kind"] == TABLE_KIND.0 {
            // Only `policy export` writes this kind. It bounds the data itself, and the kind has no
            // CEL rules.
            continue;
        }
        let version = &definition["spec"]["versions"][0];
        walk("", &version["schema"]["openAPIV3Schema"]);
        assert_eq!(version["subresources"], json!({"status": {}}));
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn the_examples_can_be_used() {
    let object: RoleGrant = example("examples/rolegrant.yaml");
    let grant = Grant::from(&object);
    assert_eq!(&*grant.name, "payments");
    CompiledGrant::compile(&grant, Some(&base())).unwrap();
    let object: RolegateConfig = example("examples/rolegateconfig.yaml");
    let config = RuleConfig::try_from(&object).unwrap();
    let modes = Modes::OFF
        .with(LayerId::Namespace, Mode::Audit)
        .with(LayerId::Grants, Mode::Audit);
    let changes_nothing = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/k8s/").ok(),
        modes,
        allow_unannotated: true,
        ..RuleConfig::default()
    };
    assert_eq!(config, changes_nothing);
    assert_eq!(config.guards(), Mode::Audit);
}

/// Keeps the example complete when a field is added.
#[test]
fn the_example_of_all_fields_has_all_fields() {
    let object: RolegateConfig = example("examples/rolegateconfig-all-fields.yaml");
    let definition = serde_json::to_value(RolegateConfig::crd()).unwrap();
    let spec = serde_json::to_value(&object.spec).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let all = schema["properties"]["spec"]["properties"]
        .as_object()
        .unwrap();
    let missing: Vec<_> = all.keys().filter(|key| spec.get(key).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let config = RuleConfig::try_from(&object).unwrap();
    assert_eq!(config.modes[LayerId::Namespace], Mode::Enforce);
    assert!(config.rule_writers.unwrap().contains("any", ["platform"]));
    let kinds: Vec<_> = config.templates.iter().map(|kind| &*kind.kind).collect();
    assert_eq!(kinds, ["Rollout", "Batch"]);
}

#[test]
fn a_grant_is_converted_completely() {
    let all = grant(json!({
        "roles": ["a-*", "b"],
        "subjects": [{
            "namespaces": ["n"],
            "namespaceSelector": {"matchLabels": {"team": "t"}},
            "serviceAccounts": ["s"],
            "podSelector": {"matchExpressions": [
                {"key": "k", "operator": "NotIn", "values": ["v"]},
                {"key": "l", "operator": "Exists"},
            ]},
        }],
        "externalIds": ["x1"],
        "session": {"durationSeconds": 900, "tags": {"team": "t"}, "names": ["n-*"],
            "policyArns": ["arn:aws:iam::aws:policy/ReadOnlyAccess"], "policy": "{}"},
    }))
    .unwrap();
    assert_eq!(all.roles, ["a-*", "b"]);
    let [subject] = &all.subjects[..] else {
        panic!("{:?}", all.subjects)
    };
    assert_eq!(subject.namespaces, ["n"]);
    assert_eq!(subject.service_accounts, ["s"]);
    let labels = [("team", "t")].into_iter().collect();
    assert!(
        subject
            .namespace_selector
            .as_ref()
            .unwrap()
            .matches(&labels)
    );
    let pods = subject.pod_selector.as_ref().unwrap();
    assert!(pods.matches(&[("l", "")].into_iter().collect()));
    assert!(!pods.matches(&[("l", ""), ("k", "v")].into_iter().collect()));
    assert_eq!(all.external_ids, ["x1"]);
    assert_eq!(all.session.duration_seconds, Some(900));
    assert_eq!(all.session.tags["team"], "t");
    assert_eq!(all.session.policy_arns.len(), 1);
    assert_eq!(
        (&*all.session.policy, &*all.session.names[0]),
        ("{}", "n-*")
    );
    CompiledGrant::compile(&all, Some(&base())).unwrap();
    // An incomplete object must grant nothing, even if it got past the API server.
    for (spec, expected) in [
        (json!({"roles": [], "subjects": []}), GrantError::NoRoles),
        (
            json!({"roles": ["a"], "subjects": []}),
            GrantError::NoSubjects,
        ),
        (
            json!({"roles": ["a"], "subjects": [{}]}),
            GrantError::NoNamespace(0),
        ),
        (
            json!({"roles": ["a"], "subjects": [{"namespaceSelector": {}}]}),
            GrantError::Empty(0, "namespaceSelector"),
        ),
        (
            json!({"roles": ["a"], "subjects": [{"namespaces": ["n"]}],
                "session": {"durationSeconds": -1}}),
            GrantError::Duration(0),
        ),
    ] {
        let error = CompiledGrant::compile(&grant(spec).unwrap(), Some(&base()));
        assert_eq!(error.unwrap_err(), expected);
    }
}

#[test]
fn a_converted_grant_is_written_as_it_was_read() {
    let restriction = |operator: &str, values: &[&str]| {
        let mut requirement = json!({"key": "k", "operator": operator});
        if !values.is_empty() {
            requirement["values"] = json!(values);
        }
        json!({"matchExpressions": [requirement]})
    };
    let subject = |selector| json!({"namespaces": ["n"], "podSelector": selector});
    for spec in [
        json!({"roles": ["a"], "subjects": [{"namespaces": ["*"]}]}),
        json!({
            "roles": ["a-*", "b"],
            "subjects": [
                {
                    "namespaceSelector": {"matchLabels": {"team": "t"}},
                    "serviceAccounts": ["s"],
                },
                subject(restriction("In", &["v", "w"])),
                subject(restriction("NotIn", &["v"])),
                subject(restriction("Exists", &[])),
                subject(restriction("DoesNotExist", &[])),
            ],
            "externalIds": ["x1"],
            "session": {"durationSeconds": 900, "tags": {"team": "t"}, "names": ["n-*"],
                "policyArns": ["arn:aws:iam::aws:policy/ReadOnlyAccess"], "policy": "{}",
                "workloadTags": "pod", "transitiveTags": true,
                "sourceIdentity": "serviceAccount"},
        }),
        json!({"roles": ["a"], "session": {"workloadTags": "workload"}}),
        json!({"roles": ["a"], "session": {"workloadTags": "none",
            "transitiveTags": false, "sourceIdentity": "none"}}),
        json!({"associations": [
            {"namespace": "n", "serviceAccount": "s*", "role": "a"},
            {"namespace": "n", "serviceAccount": "s", "role": "a", "audience": "b.example",
                "targetRole": "t", "externalId": "x1"},
        ]}),
    ] {
        let written = serde_json::to_value(RoleGrant::from(&grant(spec.clone()).unwrap()));
        let object = json!({"apiVersion": "rolegate.dev/v1alpha1", "kind": "RoleGrant",
            "metadata": {"name": "one"}, "spec": spec});
        assert_eq!(written.unwrap(), object);
    }
}

#[test]
fn a_grant_can_set_part_of_the_attribution() {
    let attribution = |session: Value| {
        let spec = json!({"roles": ["a"], "subjects": [], "session": session});
        grant(spec).unwrap().session.attribution
    };
    assert_eq!(attribution(json!({})), AttributionRules::default());
    let all = json!({"workloadTags": "none", "transitiveTags": false, "sourceIdentity": "none"});
    let nothing = AttributionRules {
        tags: Some(WorkloadTags::None),
        transitive: Some(false),
        source: Some(SourceIdentity::None),
    };
    assert_eq!(attribution(all), nothing);
    let some = attribution(json!({"workloadTags": "workload"}));
    assert_eq!(
        (some.tags, some.source),
        (Some(WorkloadTags::Workload), None)
    );
}

#[test]
fn misspelled_fields_are_errors() {
    for (spec, word) in [
        (
            json!({"roles": ["a"], "subjects": [], "sesion": {}}),
            "sesion",
        ),
        (
            json!({"roles": ["a"], "subjects": [{"namespace": "n"}]}),
            "namespace",
        ),
        (
            json!({"roles": ["a"], "subjects": [{"podSelector": {"app": "x"}}]}),
            "app",
        ),
        (
            json!({"roles": ["a"], "subjects": [], "session": {"duration": 900}}),
            "duration",
        ),
        (
            json!({"associations": [{"namespace": "n", "serviceAccount": "s"}]}),
            "role",
        ),
        (
            json!({"associations": [{"namespace": "n", "serviceAccount": "s", "role": "a",
                "roleArn": "a"}]}),
            "roleArn",
        ),
    ] {
        let error = grant(spec).unwrap_err().to_string();
        assert!(error.contains(word), "{word} not in {error}");
    }
    let object = json!({"metadata": {"name": "cluster"}, "spec": {"layers": {"grant": "off"}}});
    let error = serde_json::from_value::<RolegateConfig>(object).unwrap_err();
    assert!(error.to_string().contains("grant"), "{error}");
}

#[test]
fn an_empty_configuration_is_the_default() {
    assert_eq!(config(json!({})).unwrap(), RuleConfig::default());
    let empty = json!({"layers": {}, "rego": {}, "session": {}, "workloadKinds": []});
    assert_eq!(config(empty).unwrap(), RuleConfig::default());
}

#[test]
fn a_configuration_is_converted_completely() {
    let all = config(json!({
        "baseRoleArn": "arn:aws-cn:iam::123456789012:role/team",
        "defaultRole": "basic",
        "reservedRoles": ["path/node", "arn:aws:iam::210987654321:role/rolegate"],
        "layers": {"namespace": "off", "grants": "enforce", "rego": "audit"},
        "namespaceRestrictionFormat": "regexp",
        "namespaceRestrictionsDefault": "allow",
        "exemptNamespaces": [],
        "namespaceWriters": {"users": ["u"]},
        "ruleWriters": {},
        "rego": {"namespaces": ["p"], "label": "", "replicate": ["v1/services"],
            "resources": ["a.b/v1/cs"], "required": [{"namespace": "p", "name": "m"}],
            "wrapPods": true},
        "clusterName": "c",
        "session": {"workloadTags": "pod", "transitiveTags": true, "sourceIdentity": "serviceAccount"},
        "guardScheduling": true,
    }))
    .unwrap();
    let base = all.base.as_ref().unwrap().as_str();
    assert_eq!(base, "arn:aws-cn:iam::123456789012:role/team/");
    assert_eq!(all.default_role.as_deref(), Some("basic"));
    let own = all
        .reserved_roles
        .iter()
        .map(|own| (own.account.as_deref(), own.name.as_str()));
    let expected = [(None, "node"), (Some("210987654321"), "rolegate")];
    assert_eq!(own.collect::<Vec<_>>(), expected);
    let modes = (
        all.modes[LayerId::Namespace],
        all.modes[LayerId::Grants],
        all.modes[LayerId::Rego],
    );
    assert_eq!(modes, (Mode::Off, Mode::Enforce, Mode::Audit));
    assert_eq!(all.restriction_format, PatternFormat::Regexp);
    assert!(all.allow_unannotated && all.guard_scheduling && all.rego.wrap_pods);
    assert!(all.exempt_namespaces.is_empty());
    assert!(all.namespace_writers.as_ref().unwrap().contains("u", []));
    // Present but empty: only `system:masters`.
    assert!(!all.rule_writers.as_ref().unwrap().contains("u", []));
    assert_eq!(all.rego.label, None);
    assert_eq!(&*all.rego.replicate[0].resource, "services");
    assert_eq!(&*all.rego.resources[0].group, "a.b");
    assert!(all.rego.required.contains(&("p".into(), "m".into())));
    assert_eq!(all.cluster.as_deref(), Some("c"));
    let attribution = Attribution {
        tags: WorkloadTags::Pod,
        transitive: true,
        source: SourceIdentity::ServiceAccount,
    };
    assert_eq!(all.attribution, attribution);
}

/// Surrounding blanks are insignificant in configurations and grants, as in annotations.
#[test]
fn texts_of_a_configuration_and_of_grants_are_normalized() {
    let all = config(json!({
        "baseRoleArn": "arn:aws:iam::123456789012:role/\n",
        "defaultRole": "basic\n",
        "reservedRoles": [" node\n", "arn:aws:iam::210987654321:role/rolegate\n"],
        "exemptNamespaces": ["kube-system\n"],
        "ruleWriters": {"users": ["ann\n"], "groups": ["\tops"]},
        "rego": {"namespaces": ["opa\n"], "label": "a=b\n", "replicate": ["v1/services\n"],
            "required": [{"namespace": "opa\n", "name": "must\n"}]},
        "clusterName": "c\n",
        "workloadKinds": [{"preset": "knative\n"}, {"group": "g\n", "kind": "K\n",
            "resource": "ks\n", "paths": ["spec.template\n"]}],
        "webIdentityAudiences": ["\nMine\n", ""],
    }));
    let plain = config(json!({
        "baseRoleArn": "arn:aws:iam::123456789012:role/",
        "defaultRole": "basic",
        "reservedRoles": ["node", "arn:aws:iam::210987654321:role/rolegate"],
        "exemptNamespaces": ["kube-system"],
        "ruleWriters": {"users": ["ann"], "groups": ["ops"]},
        "rego": {"namespaces": ["opa"], "label": "a=b", "replicate": ["v1/services"],
            "required": [{"namespace": "opa", "name": "must"}]},
        "clusterName": "c",
        "workloadKinds": [{"preset": "knative"}, {"group": "g", "kind": "K",
            "resource": "ks", "paths": ["spec.template"]}],
        "webIdentityAudiences": ["", "mine"],
    }));
    assert_eq!(all.unwrap(), plain.unwrap());
    let grant = |end: &str| {
        let text = |text: &str| format!("{end}{text}{end}");
        let object = json!({"metadata": {"name": "g"}, "spec": {
            "roles": [text("reader")],
            "externalIds": [text("customer")],
            "subjects": [{"namespaces": [text("shop")], "serviceAccounts": [text("api")],
                "podSelector": {"matchLabels": {text("tier"): text("front")},
                    "matchExpressions": [
                        {"key": text("env"), "operator": "NotIn", "values": [text("prod")]}]}}],
            "session": {"policyArns": [text("arn:aws:iam::aws:policy/ReadOnlyAccess")],
                "policy": text("{}"), "names": [text("shop.*")]},
        }});
        Grant::from(&serde_json::from_value::<RoleGrant>(object).unwrap())
    };
    assert_eq!(grant("\n"), grant(""));
    assert_eq!(grant("\u{a0}"), grant(""));
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn errors_in_a_configuration_name_the_field() {
    for (spec, field) in [
        (
            json!({"baseRoleArn": "arn:aws:iam::1:role/"}),
            "spec.baseRoleArn",
        ),
        (json!({"defaultRole": "a b"}), "spec.defaultRole"),
        (json!({"defaultRole": "arn:aws:s3:::x"}), "spec.defaultRole"),
        (
            json!({"reservedRoles": ["node", "a b"]}),
            "spec.reservedRoles[1]",
        ),
        (json!({"clusterName": "a;b"}), "spec.clusterName"),
        (json!({"clusterName": ""}), "spec.clusterName"),
        (json!({"rego": {"label": "policy"}}), "spec.rego.label"),
        (json!({"rego": {"label": "=x"}}), "spec.rego.label"),
        (
            json!({"rego": {"replicate": ["v1/pods", "pods"]}}),
            "spec.rego.replicate[1]",
        ),
        (
            json!({"rego": {"replicate": ["v1/services", "a.b/v1/services"]}}),
            "spec.rego.replicate[1]",
        ),
        (
            json!({"rego": {"resources": ["v1/Pods"]}}),
            "spec.rego.resources[0]",
        ),
        (
            // The API server would refuse a registration with these.
            json!({"exemptNamespaces": ["fine", "Foo Bar"]}),
            "spec.exemptNamespaces[1]",
        ),
        (
            json!({"exemptNamespaces": ["foo-"]}),
            "spec.exemptNamespaces[0]",
        ),
        (
            json!({"rego": {"namespaces": ["foo.bar"]}}),
            "spec.rego.namespaces[0]",
        ),
        (
            json!({"workloadKinds": [{"preset": "argo-rollouts"}, {"group": "argoproj.io",
                "kind": "Rollout", "resource": "rollouts", "paths": ["spec.template"]}]}),
            "spec.workloadKinds[1]",
        ),
        (
            json!({"workloadKinds": [{"group": "Foo_io", "kind": "K", "resource": "ks",
                "paths": ["spec"]}]}),
            "spec.workloadKinds[0]",
        ),
        (
            json!({"workloadKinds": [{"group": "foo.io", "kind": "K", "resource": "ks/x",
                "paths": ["spec"]}]}),
            "spec.workloadKinds[0]",
        ),
        (
            json!({"workloadKinds": [{"preset": "none"}]}),
            "spec.workloadKinds[0].preset",
        ),
        (
            json!({"workloadKinds": [{"preset": "knative", "kind": "X"}]}),
            "spec.workloadKinds[0]",
        ),
        (
            json!({"workloadKinds": [{"kind": "X"}]}),
            "spec.workloadKinds[0]",
        ),
        (
            json!({"workloadKinds": [{"group": "g", "kind": "K", "resource": "ks", "paths": []}]}),
            "spec.workloadKinds[0]",
        ),
        (
            json!({"workloadKinds": [{"group": "g", "kind": "K", "resource": "ks",
                "paths": ["spec..template"]}]}),
            "spec.workloadKinds[0].paths",
        ),
        (
            json!({"workloadKinds": [{"group": "g", "kind": "K", "resource": "ks",
                "metadataPaths": ["spec.x y"]}]}),
            "spec.workloadKinds[0].metadataPaths",
        ),
        (
            json!({"workloadKinds": [{"preset": "knative", "metadataPaths": ["spec"]}]}),
            "spec.workloadKinds[0]",
        ),
    ] {
        let error = config(spec).unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.advice.len() > 10, "{error}");
    }
    let elsewhere = json!({"metadata": {"name": "other"}, "spec": {}});
    let object: RolegateConfig = serde_json::from_value(elsewhere).unwrap();
    assert_eq!(
        RuleConfig::try_from(&object).unwrap_err().field,
        "metadata.name"
    );
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let status = |ready, message: &str| Status {
        ready,
        reason: "Reason",
        message: message.into(),
        generation: Some(3),
    };
    let first = status(true, "a").condition(&[], "t1");
    assert_eq!(
        (&*first.status, &*first.last_transition_time),
        ("True", "t1")
    );
    let second = status(true, "b").condition(std::slice::from_ref(&first), "t2");
    assert_eq!(
        (&*second.message, &*second.last_transition_time),
        ("b", "t1")
    );
    let third = status(false, "b").condition(&[second], "t3");
    assert_eq!(
        (&*third.status, &*third.last_transition_time),
        ("False", "t3")
    );
}
