//! Manifests as the requests that create them.

use serde_json::{Value, json};

use super::Creator;

/// Kinds of Kubernetes and of ours that are in no namespace.
const CLUSTER_KINDS: &[&str] = &[
    "APIService",
    "CSIDriver",
    "CSINode",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ComponentStatus",
    "CustomResourceDefinition",
    "FlowSchema",
    "IngressClass",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "RoleGrant",
    "RolegateConfig",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

/// An AdmissionReview, and what names its object.
pub(super) struct CreateRequest {
    pub(super) body: Value,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// The review of the creation of `object`.
pub(super) fn review_of(object: &Value, creator: &Creator, namespace: &str) -> CreateRequest {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let api_version = text("/apiVersion").unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = text("/kind").unwrap_or_default().to_owned();
    let name = text("/metadata/name").unwrap_or_default().to_owned();
    let namespace = match kind.as_str() {
        // The API server says so.
        "Namespace" if group.is_empty() => name.clone(),
        other if CLUSTER_KINDS.contains(&other) => String::new(),
        _ => text("/metadata/namespace").unwrap_or(namespace).to_owned(),
    };
    let object = in_namespace(object, &kind, &namespace);
    let kind_of = json!({"group": group, "version": version, "kind": kind});
    let resource = json!({"group": group, "version": version, "resource": plural(&kind)});
    let body = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "00000000-0000-0000-0000-000000000000",
            "kind": kind_of,
            "requestKind": kind_of,
            "resource": resource,
            "requestResource": resource,
            "name": name,
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": creator.user, "groups": creator.groups},
            "object": object,
            "oldObject": null,
            "dryRun": false,
        },
    });
    CreateRequest {
        body,
        kind,
        namespace,
        name,
    }
}

/// The object as the API server shows it: namespaced ones name their namespace.
fn in_namespace(object: &Value, kind: &str, namespace: &str) -> Value {
    let mut object = object.clone();
    if kind != "Namespace"
        && !namespace.is_empty()
        && let Some(Value::Object(metadata)) = object.get_mut("metadata")
    {
        metadata
            .entry("namespace")
            .or_insert_with(|| namespace.into());
    }
    object
}

/// The plural as Kubernetes makes it by default.
fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    if let Some(start) = kind.strip_suffix('y') {
        format!("{start}ies")
    } else if kind.ends_with('s') || kind.ends_with('x') || kind.ends_with("ch") {
        format!("{kind}es")
    } else {
        format!("{kind}s")
    }
}

/// The steps of a path such as `spec.containers[0].env[name.with/dots]`.
pub(super) fn path_steps(path: &str) -> Vec<String> {
    let mut steps = Vec::new();
    let mut step = String::new();
    let mut in_brackets = false;
    for character in path.chars() {
        match character {
            '[' if !in_brackets => {
                in_brackets = true;
                steps.push(std::mem::take(&mut step));
            }
            ']' if in_brackets => {
                in_brackets = false;
                steps.push(std::mem::take(&mut step));
            }
            '.' if !in_brackets => steps.push(std::mem::take(&mut step)),
            other => step.push(other),
        }
    }
    steps.push(step);
    steps.retain(|step| !step.is_empty());
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(
            path_steps("spec.template.metadata.annotations[iam.amazonaws.com/role]"),
            [
                "spec",
                "template",
                "metadata",
                "annotations",
                "iam.amazonaws.com/role"
            ]
        );
        assert_eq!(
            path_steps("spec.containers[0].env[1].name"),
            ["spec", "containers", "0", "env", "1", "name"]
        );
        assert!(path_steps("").is_empty());
        assert_eq!(path_steps("a[b"), ["a", "b"]);
    }

    #[test]
    fn objects_are_placed_where_the_api_server_puts_them() {
        let creator = Creator {
            user: "ann".into(),
            groups: Vec::new(),
        };
        let of = |object: Value| {
            let request = review_of(&object, &creator, "default");
            let resource = request.body["request"]["resource"]["resource"].clone();
            format!("{}|{}|{resource}", request.namespace, request.name)
        };
        for (kind, expected) in [
            ("Pod", r#"default|x|"pods""#),
            ("Namespace", r#"x|x|"namespaces""#),
            ("RoleGrant", r#"|x|"rolegrants""#),
            ("NetworkPolicy", r#"default|x|"networkpolicies""#),
            ("Ingress", r#"default|x|"ingresses""#),
        ] {
            let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}});
            assert_eq!(of(object), expected);
        }
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"generateName": "x-", "namespace": "shop"}});
        assert_eq!(of(object), r#"shop||"deployments""#);
    }
}
