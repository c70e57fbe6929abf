//! What the tests share: books, policies, reviews.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_rego::{
    Findings, Kind, Points, Policies, PolicyBook, PolicySource, PolicyStatus, Replicated, Settings,
};
use serde_json::{Value, json};

pub(crate) const GATE: Points = Points {
    gate: true,
    door: false,
};
pub(crate) const BOTH: Points = Points {
    gate: true,
    door: true,
};
pub(crate) const DOOR: Points = Points {
    gate: false,
    door: true,
};

/// A moment.
pub(crate) fn now() -> Timestamp {
    "2024-03-01T12:00:00Z".parse().unwrap()
}

/// A ConfigMap of policies with one module, `opa/<name>`.
pub(crate) fn policy(name: &str, points: Points, rego: &str) -> PolicySource {
    PolicySource {
        namespace: "opa".into(),
        name: name.into(),
        kind: Kind::Policy,
        points,
        entries: BTreeMap::from([("main.rego".into(), rego.into())]),
    }
}

/// A data ConfigMap.
pub(crate) fn data(namespace: &str, name: &str, key: &str, value: &str) -> PolicySource {
    PolicySource {
        namespace: namespace.into(),
        name: name.into(),
        kind: Kind::Data,
        points: Points::default(),
        entries: BTreeMap::from([(key.into(), value.into())]),
    }
}

/// A namespace as it is replicated.
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

/// A book with some policies.
pub(crate) fn book(policies: impl IntoIterator<Item = PolicySource>) -> PolicyBook {
    let mut book = PolicyBook::new(Settings::default());
    for policy in policies {
        book.apply(policy);
    }
    book
}

/// The error of a ConfigMap `opa/<name>`.
pub(crate) fn error(book: &PolicyBook, name: &str) -> String {
    match book.statuses().get(format!("opa/{name}").as_str()) {
        Some(PolicyStatus::Error { error, .. }) => error.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

/// A review of a Pod of namespace `team-a`.
pub(crate) fn pod_review(annotations: Value, spec: Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
        "namespace": "team-a", "name": "p", "userInfo": {"username": "alice"},
        "object": {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "team-a", "annotations": annotations},
            "spec": spec}}})
}

/// What policies say to a review.
pub(crate) fn judge(policies: &Policies, review: &Value) -> Findings {
    policies.judge_review(review, now())
}

/// The messages only.
pub(crate) fn messages(findings: &Findings) -> Vec<&str> {
    findings
        .denials
        .iter()
        .map(|finding| finding.message.as_str())
        .collect()
}

/// Denies all, with a message.
pub(crate) fn denies_all(message: &str) -> String {
    format!("package kubernetes.admission\n\ndeny[msg] {{ msg := \"{message}\" }}\n")
}
