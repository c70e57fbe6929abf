//! Wraps a bare Pod in the workloads that could have created it, so that Rego written for
//! Deployments also applies to it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Kinds with a pod template, with their API groups and versions.
const KINDS: [(&str, &str, &str); 7] = [
    ("Deployment", "apps", "v1"),
    ("StatefulSet", "apps", "v1"),
    ("DaemonSet", "apps", "v1"),
    ("ReplicaSet", "apps", "v1"),
    ("ReplicationController", "", "v1"),
    ("Job", "batch", "v1"),
    ("CronJob", "batch", "v1"),
];

/// Returns the kind with a pod template that a string in a policy names, in any case, since a
/// policy may compare it with `lower(kind)`.
pub(crate) fn kind_named(text: &str) -> Option<&'static str> {
    KINDS
        .iter()
        .map(|(kind, ..)| *kind)
        .find(|kind| kind.eq_ignore_ascii_case(text))
}

/// Wraps the review of a Pod in reviews of the kinds that a policy names.
pub(crate) fn wrapped(review: &Value, kinds: &BTreeSet<&'static str>) -> Vec<Value> {
    let Some(request) = review.get("request").and_then(Value::as_object) else {
        return Vec::new();
    };
    let Some(pod) = request.get("object").and_then(Value::as_object) else {
        return Vec::new();
    };
    KINDS
        .iter()
        .filter(|(kind, ..)| kinds.contains(kind))
        .map(|(kind, group, version)| {
            let mut request = request.clone();
            request.insert(
                "kind".into(),
                json!({"group": group, "version": version, "kind": kind}),
            );
            if let Some(kind_field) = request.get_mut("requestKind") {
                *kind_field = json!({"group": group, "version": version, "kind": kind});
            }
            request.insert("object".into(), object(kind, group, version, pod));
            let mut review = review.as_object().cloned().unwrap_or_default();
            review.insert("request".into(), Value::Object(request));
            Value::Object(review)
        })
        .collect()
}

fn object(kind: &str, group: &str, version: &str, pod: &Map<String, Value>) -> Value {
    let metadata = pod.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let mut own = Map::new();
    for field in ["name", "generateName", "namespace", "labels", "annotations"] {
        if let Some(value) = metadata.get(field) {
            own.insert(field.into(), value.clone());
        }
    }
    let spec = pod.get("spec").cloned().unwrap_or_else(|| json!({}));
    let template = json!({"template": {"metadata": metadata, "spec": spec}});
    let spec = match kind {
        "CronJob" => json!({"jobTemplate": {"spec": template}}),
        _ => template,
    };
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    json!({"apiVersion": api_version, "kind": kind, "metadata": own, "spec": spec})
}

/// The paths of the pod's fields in an object that wraps it.
pub(crate) const TEMPLATES: [&[&str]; 2] = [
    &["spec", "template"],
    &["spec", "jobTemplate", "spec", "template"],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_11_kinds_are_named_in_any_case() {
        for text in ["Deployment", "deployment", "DEPLOYMENT"] {
            assert_eq!(kind_named(text), Some("Deployment"), "{text}");
        }
        for text in ["", "Pod", "deployments", "Deploy"] {
            assert_eq!(kind_named(text), None, "{text}");
        }
    }

    #[test]
    fn threat_11_a_pod_becomes_each_kind_that_is_named() {
        let review = json!({"kind": "AdmissionReview", "request": {
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": "a",
            "object": {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p", "labels": {"app": "x"}, "uid": "u"}, "spec": {"nodeName": "n"}}}});
        let wrapped = wrapped(&review, &BTreeSet::from(["CronJob", "Deployment"]));
        assert_eq!(wrapped.len(), 2);
        assert_eq!(
            wrapped[0]["request"]["kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(wrapped[0]["request"]["namespace"], "a");
        assert_eq!(wrapped[0]["request"]["object"]["apiVersion"], "apps/v1");
        assert_eq!(
            wrapped[0]["request"]["object"]["metadata"],
            json!({"name": "p", "labels": {"app": "x"}})
        );
        assert_eq!(
            wrapped[0]["request"]["object"]["spec"]["template"]["spec"],
            json!({"nodeName": "n"})
        );
        assert_eq!(
            wrapped[1]["request"]["object"]["spec"]["jobTemplate"]["spec"]["template"]["metadata"]
                ["labels"],
            json!({"app": "x"})
        );
    }
}
