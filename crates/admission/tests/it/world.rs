//! Rules out of a world's manifests.

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_admission::{GateRules, Outcome, Review, ReviewPolicies, judge};
use rolegate_core::annotation::{ALLOWED_ROLES, AnnotationKeys, DEFAULT_ROLE, PERMITTED};
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig, Subjects, presets};
use rolegate_core::decision::RuleSet;
use rolegate_core::grant::{Grant, SessionRules, Subject};
use rolegate_core::key_values::KeyValues;
use rolegate_core::layer::Mode;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::namespace::Namespace;
use rolegate_core::rulebook::{ClusterConfig, Facts, RuleBook, RuleUpdate};
use rolegate_core::selector::Selector;
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use serde_json::Value;

pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Everything that reviews are judged by.
pub(crate) struct Rules {
    pub(crate) set: RuleSet,
    pub(crate) config: Arc<RuleConfig>,
    pub(crate) grants: Arc<GrantsLayer>,
    pub(crate) keys: AnnotationKeys,
}

impl Rules {
    /// The rules of a world in `tests/cases/worlds`.
    pub(crate) fn of(name: &str) -> Self {
        let world = rolegate_testkit::cases::world(name).unwrap();
        Self::of_documents(&world.documents)
    }

    /// The rules of manifests.
    pub(crate) fn of_documents(documents: &[Value]) -> Self {
        let of_kind = |kind: &'static str| {
            let all = documents.iter();
            all.filter(move |document| document["kind"] == kind)
        };
        let mut book = RuleBook::new(RuleConfig::default(), SessionScope::Workload, 3600);
        book.learn(Facts::default());
        for document in of_kind("RolegateConfig") {
            let config = ClusterConfig::Is(Arc::new(config(&document["spec"])));
            book.update(RuleUpdate::Config(config));
        }
        let grants = of_kind("RoleGrant").map(grant).collect();
        book.update(RuleUpdate::Grants(Change::Snapshot(grants)));
        let namespaces = of_kind("Namespace").map(namespace).collect();
        book.update(RuleUpdate::Namespaces(Change::Snapshot(namespaces)));
        let rules = Self {
            set: book.rule_set(),
            config: book.config().clone(),
            grants: book.grants().clone(),
            keys: AnnotationKeys::default(),
        };
        assert_eq!(rules.grants.invalid(), &[], "a world with an invalid grant");
        rules
    }

    pub(crate) fn gate<'a>(&'a self, policies: Option<&'a dyn ReviewPolicies>) -> GateRules<'a> {
        GateRules {
            rules: &self.set,
            config: &self.config,
            grants: &self.grants,
            keys: &self.keys,
            policies,
        }
    }

    pub(crate) fn judge(&self, review: &Value) -> Outcome {
        let body = review.to_string();
        let review = Review::parse(body.as_bytes()).unwrap();
        judge(&self.gate(None), &review, NOW)
    }
}

fn config(spec: &Value) -> RuleConfig {
    let text = |name: &str| spec[name].as_str();
    let mode = |layer: &str| match spec["layers"][layer].as_str() {
        Some("enforce") => Mode::Enforce,
        Some("audit") => Mode::Audit,
        Some("off") => Mode::Off,
        other => panic!("layer {layer} is {other:?}"),
    };
    let mut config = RuleConfig {
        base: text("baseRoleArn").map(|base| BaseArn::parse(base).unwrap()),
        default_role: text("defaultRole").map(Into::into),
        modes: Modes {
            namespace: mode("namespace"),
            grants: mode("grants"),
            rego: mode("rego"),
        },
        spared_namespaces: texts(&spec["sparedNamespaces"]).collect(),
        namespace_writers: subjects(&spec["namespaceWriters"]),
        rule_writers: spec.get("ruleWriters").map(subjects),
        guard_scheduling: spec["guardScheduling"] == true,
        ..RuleConfig::default()
    };
    for kind in spec["workloadKinds"].as_array().into_iter().flatten() {
        config
            .templates
            .extend(presets::preset(kind["preset"].as_str().unwrap()).unwrap());
    }
    for required in spec["rego"]["required"].as_array().into_iter().flatten() {
        let name = |field: &str| required[field].as_str().unwrap().into();
        config.rego.required.insert((name("namespace"), name("name")));
    }
    config
}

fn texts<T: for<'a> From<&'a str>>(list: &Value) -> impl Iterator<Item = T> {
    let list = list.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap().into())
}

fn subjects(value: &Value) -> Subjects {
    Subjects {
        users: texts(&value["users"]).collect(),
        groups: texts(&value["groups"]).collect(),
    }
}

fn pairs(map: &Value) -> KeyValues {
    let map = map.as_object().into_iter().flatten();
    map.map(|(key, value)| (key, value.as_str().unwrap()))
        .collect()
}

fn selector(value: &Value) -> Option<Selector> {
    value.is_object().then(|| Selector {
        labels: pairs(&value["matchLabels"]),
        expressions: Vec::new(),
    })
}

fn grant(document: &Value) -> Grant {
    let spec = &document["spec"];
    let subjects = spec["subjects"].as_array().unwrap().iter();
    let session = &spec["session"];
    Grant {
        name: document["metadata"]["name"].as_str().unwrap().into(),
        roles: texts(&spec["roles"]).collect(),
        subjects: subjects
            .map(|subject| Subject {
                namespaces: texts(&subject["namespaces"]).collect(),
                namespace_selector: selector(&subject["namespaceSelector"]),
                service_accounts: texts(&subject["serviceAccounts"]).collect(),
                pod_selector: selector(&subject["podSelector"]),
            })
            .collect(),
        external_ids: texts(&spec["externalIds"]).collect(),
        session: SessionRules {
            duration_seconds: session["durationSeconds"]
                .as_u64()
                .map(|seconds| u32::try_from(seconds).unwrap()),
            names: texts(&session["names"]).collect(),
            ..SessionRules::default()
        },
        ..Grant::default()
    }
}

fn namespace(document: &Value) -> Namespace {
    let metadata = &document["metadata"];
    let annotation = |key: &str| metadata["annotations"][key].as_str().map(Into::into);
    Namespace {
        name: metadata["name"].as_str().unwrap().into(),
        allowed_roles: annotation(ALLOWED_ROLES),
        permitted: annotation(PERMITTED),
        default_role: annotation(DEFAULT_ROLE),
        labels: pairs(&metadata["labels"]),
    }
}
