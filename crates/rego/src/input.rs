//! The input of policies at agents, which is the same for an existing pod and for a review of one,
//! and the paths that a policy may read.

use rolegate_core::annotation;
use rolegate_core::workload::Workload;
use serde_json::{Map, Value, json};

use crate::analysis::InputRead;
use crate::wrap;

/// Paths below `input` that a policy at an agent may read.
const DOCUMENTED: &[&[&str]] = &[
    &["kind"],
    &["apiVersion"],
    &["request", "kind"],
    &["request", "kind", "group"],
    &["request", "kind", "version"],
    &["request", "kind", "kind"],
    &["request", "operation"],
    &["request", "namespace"],
    &["request", "name"],
    &["request", "object", "apiVersion"],
    &["request", "object", "kind"],
];

/// Paths below the pod, or below its template if it is wrapped.
const DOCUMENTED_POD: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["spec", "serviceAccountName"],
    &["spec", "nodeName"],
    &["spec", "hostNetwork"],
];

/// The documented input, for messages and documentation.
pub const DOCUMENTED_INPUT: &str = "request.kind, .operation, .namespace, .name; \
    request.object.apiVersion, .kind, .metadata.name, .namespace, .uid, .labels, .annotations \
    (those of iam.amazonaws.com, eks.amazonaws.com and rolegate.dev), .spec.serviceAccountName, \
    .nodeName, .hostNetwork";

/// Returns an error message if a read is outside the documented input.
pub(crate) fn undocumented(read: &InputRead, wraps: bool) -> Option<String> {
    let path: Vec<&str> = read.path.iter().map(String::as_str).collect();
    let report = || {
        let dynamic = if read.dynamic { "[…]" } else { "" };
        let path: String = path.iter().map(|part| format!(".{part}")).collect();
        Some(format!(
            "reads input{path}{dynamic}, which is not available at agents; the input there is \
             {DOCUMENTED_INPUT}. Read only these fields, or enforce the policy at admission only \
             ({}: admission)",
            annotation::ENFORCEMENT_POINTS
        ))
    };
    if let Some(["request", "object", inside @ ..]) = Some(path.as_slice()) {
        let mut pods = vec![inside];
        if wraps {
            pods.extend(
                wrap::TEMPLATES
                    .iter()
                    .filter_map(|start| inside.strip_prefix(*start)),
            );
        }
        for pod in pods {
            match pod {
                ["metadata", "labels", ..] => return None,
                ["metadata", "annotations"] => return None,
                ["metadata", "annotations", key, ..] if annotation::is_kept(key) => return None,
                _ if !read.dynamic && DOCUMENTED_POD.contains(&pod) => return None,
                _ => {}
            }
        }
    }
    if DOCUMENTED.contains(&path.as_slice()) && (!read.dynamic || path == ["request", "kind"]) {
        return None;
    }
    report()
}

/// Returns the documented input for an existing pod.
pub(crate) fn of_workload(pod: &Workload) -> Value {
    let mut metadata = json!({"name": &*pod.name, "namespace": &*pod.namespace, "uid": &*pod.uid});
    let mut spec = json!({"serviceAccountName": &*pod.service_account});
    if let Some(metadata) = metadata.as_object_mut() {
        for (field, values) in [("labels", &pod.labels), ("annotations", &pod.annotations)] {
            let kept: Map<String, Value> = values
                .iter()
                .filter(|(key, _)| field == "labels" || annotation::is_kept(key))
                .map(|(key, value)| (key.to_owned(), value.into()))
                .collect();
            if !kept.is_empty() {
                metadata.insert(field.into(), kept.into());
            }
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        if let Some(node) = &pod.node {
            spec.insert("nodeName".into(), node.as_ref().into());
        }
        if pod.host_network {
            spec.insert("hostNetwork".into(), true.into());
        }
    }
    review(&pod.namespace, Some(&pod.name), metadata, spec)
}

/// Returns the documented input for a Pod under review. Fields that the API server sets later (the
/// name of a generated pod, the node) are missing.
pub(crate) fn of_review(admission_review: &Value) -> Value {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let object = admission_review.pointer("/request/object");
    let at = |path: &str| object.and_then(|object| object.pointer(path));
    let namespace = text(admission_review.pointer("/request/namespace")).unwrap_or_default();
    let name =
        text(at("/metadata/name")).or_else(|| text(admission_review.pointer("/request/name")));
    let name = name.filter(|name| !name.is_empty());
    let mut metadata = Map::new();
    metadata.insert("namespace".into(), namespace.as_str().into());
    if let Some(name) = &name {
        metadata.insert("name".into(), name.as_str().into());
    }
    if let Some(uid) = text(at("/metadata/uid")) {
        metadata.insert("uid".into(), uid.into());
    }
    for field in ["labels", "annotations"] {
        let kept: Map<String, Value> = at(&format!("/metadata/{field}"))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(key, value)| {
                value.is_string() && (field == "labels" || annotation::is_kept(key))
            })
            .map(|(key, value)| (key.clone(), cut(field, value)))
            .collect();
        if !kept.is_empty() {
            metadata.insert(field.into(), kept.into());
        }
    }
    let account = text(at("/spec/serviceAccountName")).filter(|account| !account.is_empty());
    let mut spec = json!({"serviceAccountName": account.unwrap_or_else(|| "default".into())});
    if let Some(spec) = spec.as_object_mut() {
        if let Some(node) = text(at("/spec/nodeName")).filter(|node| !node.is_empty()) {
            spec.insert("nodeName".into(), node.into());
        }
        if at("/spec/hostNetwork") == Some(&Value::Bool(true)) {
            spec.insert("hostNetwork".into(), true.into());
        }
    }
    review(&namespace, name.as_deref(), metadata.into(), spec)
}

/// Returns a label or annotation as agents store it: annotations are truncated.
fn cut(field: &str, value: &Value) -> Value {
    match value {
        Value::String(text) if field == "annotations" => annotation::cut(text).into(),
        other => other.clone(),
    }
}

fn review(namespace: &str, name: Option<&str>, metadata: Value, spec: Value) -> Value {
    let mut request = json!({
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": namespace,
        "object": {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    });
    if let (Some(request), Some(name)) = (request.as_object_mut(), name) {
        request.insert("name".into(), name.into());
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

/// Returns true if a review is about the creation or change of a Pod.
pub(crate) fn asks_for_pod(review: &regorus::Value) -> bool {
    let request = &review["request"];
    let text = |value: &regorus::Value| value.as_string().cloned().unwrap_or_default();
    *text(&request["kind"]["kind"]) == *"Pod"
        && text(&request["kind"]["group"]).is_empty()
        && matches!(&*text(&request["operation"]), "CREATE" | "UPDATE")
        // A subresource such as pods/exec is not the pod itself.
        && text(&request["subResource"]).is_empty()
}

/// Returns true if a value is nested so deeply that recursive conversion could exhaust the stack.
/// Iterative.
pub(crate) fn is_too_deep(value: &Value) -> bool {
    const DEEPEST: usize = 128;
    let mut open = vec![(value, 0usize)];
    while let Some((value, depth)) = open.pop() {
        if depth > DEEPEST {
            return true;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => open.extend(fields.values().map(|field| (field, depth + 1))),
            _ => {}
        }
    }
    false
}
