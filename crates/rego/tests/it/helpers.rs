//! Shared helpers: stores, policies, reviews.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_rego::{
    EnforcementPoints, Findings, Kind, Policies, PolicySource, PolicyStatus, PolicyStore,
    Replicated, Settings,
};
use serde_json::{Value, json};

pub(crate) const ADMISSION: EnforcementPoints = EnforcementPoints {
    admission: true,
    agent: false,
};
pub(crate) const BOTH: EnforcementPoints = EnforcementPoints {
    admission: true,
    agent: true,
};
pub(crate) const AGENT: EnforcementPoints = EnforcementPoints {
    admission: false,
    agent: true,
};

/// Returns a fixed time.
pub(crate) fn now() -> Timestamp {
    "2024-03-01T12:00:00Z".parse().unwrap()
}

/// Returns a policy ConfigMap with one module, `opa/<name>`.
pub(crate) fn policy(name: &str, points: EnforcementPoints, rego: &str) -> PolicySource {
    PolicySource {
        namespace: "opa".into(),
        name: name.into(),
        kind: Kind::Policy,
        points,
        entries: BTreeMap::from([("main.rego".into(), rego.into())]),
    }
}

/// Returns a data ConfigMap.
pub(crate) fn data(namespace: &str, name: &str, key: &str, value: &str) -> PolicySource {
    PolicySource {
        namespace: namespace.into(),
        name: name.into(),
        kind: Kind::Data,
        points: EnforcementPoints::default(),
        entries: BTreeMap::from([(key.into(), value.into())]),
    }
}

/// Returns a replicated namespace.
pub(crate) fn namespace(name: &str, annotations: Value) -> Replicated {
    Replicated {
        resource: "namespaces".into(),
        namespace: None,
        name: name.into(),
        object: json!({"metadata": {"name": name, "annotations": annotations}})
            .to_string()
            .into(),
    }
}

/// Returns a store with some policies.
pub(crate) fn store(policies: impl IntoIterator<Item = PolicySource>) -> PolicyStore {
    let mut store = PolicyStore::new(Settings::default());
    for policy in policies {
        store.apply(policy);
    }
    store
}

/// Returns the error of a ConfigMap `opa/<name>`.
pub(crate) fn error(store: &PolicyStore, name: &str) -> String {
    match store.statuses().get(format!("opa/{name}").as_str()) {
        Some(PolicyStatus::Error { error, .. }) => error.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Returns a review of a Pod in namespace `team-a`.
pub(crate) fn pod_review(annotations: Value, spec: Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
        "namespace": "team-a", "name": "p", "userInfo": {"username": "alice"},
        "object": {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "team-a", "annotations": annotations},
            "spec": spec}}})
}

/// Evaluates policies on a review.
pub(crate) fn evaluate(policies: &Policies, review: &Value) -> Findings {
    policies.evaluate_review(review, now())
}

/// Returns the messages.
pub(crate) fn messages(findings: &Findings) -> Vec<&str> {
    findings
        .denials
        .iter()
        .map(|finding| finding.message.as_str())
        .collect()
}

/// Returns a policy that denies everything, with a message.
pub(crate) fn denies_all(message: &str) -> String {
    format!("package kubernetes.admission\n\ndeny[msg] {{ msg := \"{message}\" }}\n")
}
