//! Converts manifests into the requests that the API server would send.

use rolegate_report::findings::ObjectName;
use rolegate_review::admission_review::Operation;
use serde_json::{Map, Value, json};

use super::{Creator, defaults, values};

/// Cluster-scoped kinds of Kubernetes and of rolegate.
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
/// The API group of reviews.
const REVIEW_GROUP: &str = "admission.k8s.io";
/// The version of reviews that admission supports.
const REVIEW_VERSION: &str = "admission.k8s.io/v1";
/// The UID of reviews without one.
const UID: &str = "00000000-0000-0000-0000-000000000000";

/// An AdmissionReview, and the path of its object.
pub(super) struct Request {
    pub(super) body: Value,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The fields of the manifest that lead to the object.
    pub(super) prefix: &'static [&'static str],
}

impl Request {
    /// Returns the kind and name of the object.
    pub(super) fn object(&self) -> ObjectName {
        ObjectName {
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// Returns whether an object is an AdmissionReview.
pub fn is_review(object: &Value) -> bool {
    let text = |field| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let group = text("apiVersion").split('/').next();
    text("kind") == "AdmissionReview" && group == Some(REVIEW_GROUP)
}

/// Returns the namespace of a manifest: its own, or `default` if it is absent or empty.
pub fn namespace_of<'a>(object: &'a Value, default: &'a str) -> &'a str {
    let pointer = if is_review(object) {
        "/request/namespace"
    } else {
        "/metadata/namespace"
    };
    let named = object.pointer(pointer).and_then(Value::as_str);
    named.filter(|name| !name.is_empty()).unwrap_or(default)
}

/// Returns the review of an operation on `object`, or that of an AdmissionReview. `old` is the
/// existing object, which makes a creation an update.
pub(super) fn review_of(
    object: &Value,
    old: Option<&Value>,
    operation: Operation,
    creator: &Creator,
    namespace: &str,
) -> Request {
    if is_review(object) {
        return given(object);
    }
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let api_version = text("/apiVersion").unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = text("/kind").unwrap_or_default().to_owned();
    let name = text("/metadata/name").unwrap_or_default().to_owned();
    let namespace = match kind.as_str() {
        // As the API server does.
        "Namespace" if group.is_empty() => name.clone(),
        other if CLUSTER_KINDS.contains(&other) => String::new(),
        _ => namespace_of(object, namespace).to_owned(),
    };
    let completed = |object: &Value| {
        let mut object = in_namespace(object, &kind, &namespace);
        values::settle(&mut object, group);
        defaults::fill(&mut object, group, &kind);
        object
    };
    let operation = match (operation, old) {
        (Operation::Create, Some(_)) => Operation::Update,
        (operation, _) => operation,
    };
    let (object, old) = match operation {
        Operation::Delete => (None, Some(old.unwrap_or(object))),
        _ => (Some(object), old),
    };
    let kind_of = json!({"group": group, "version": version, "kind": kind});
    let resource = json!({"group": group, "version": version, "resource": plural(&kind)});
    let body = json!({
        "apiVersion": REVIEW_VERSION,
        "kind": "AdmissionReview",
        "request": {
            "uid": UID,
            "kind": kind_of,
            "requestKind": kind_of,
            "resource": resource,
            "requestResource": resource,
            "name": name,
            "namespace": namespace,
            "operation": operation.as_str(),
            "userInfo": {"username": creator.user, "groups": creator.groups},
            "object": object.map(completed),
            "oldObject": old.map(completed),
            "dryRun": false,
        },
    });
    Request {
        body,
        kind,
        namespace,
        name,
        prefix: &[],
    }
}

/// Completes an AdmissionReview from a manifest. It may omit fields that admission does not read.
fn given(review: &Value) -> Request {
    let mut body = review.clone();
    if let Value::Object(fields) = &mut body {
        // v1beta1 has the same fields.
        fields.insert("apiVersion".into(), REVIEW_VERSION.into());
        if let Some(Value::Object(request)) = fields.get_mut("request") {
            let uid = request.entry("uid").or_insert(Value::Null);
            if uid.as_str().is_none_or(str::is_empty) {
                *uid = UID.into();
            }
        }
    }
    let text = |pointers: &[&str]| {
        let mut found = pointers
            .iter()
            .filter_map(|pointer| review.pointer(pointer)?.as_str())
            .filter(|text| !text.is_empty());
        found.next().unwrap_or_default().to_owned()
    };
    let metadata = |field: &str| {
        let fields = ["object", "oldObject"];
        fields.map(|object| format!("/request/{object}/metadata/{field}"))
    };
    let [new, old] = metadata("name");
    let prefix: &[&str] = match review.pointer("/request/object") {
        Some(Value::Object(_)) => &["request", "object"],
        _ => &["request", "oldObject"],
    };
    Request {
        body,
        kind: text(&["/request/kind/kind"]),
        namespace: text(&["/request/namespace"]),
        name: text(&["/request/name", &new, &old]),
        prefix,
    }
}

/// Adds the namespace to a namespaced object, as the API server does.
fn in_namespace(object: &Value, kind: &str, namespace: &str) -> Value {
    let mut object = object.clone();
    if kind == "Namespace" || namespace.is_empty() {
        return object;
    }
    if let Value::Object(fields) = &mut object {
        let metadata = fields.entry("metadata").or_insert(Value::Null);
        if metadata.is_null() {
            *metadata = Map::new().into();
        }
        if let Value::Object(metadata) = metadata {
            let named = metadata.entry("namespace").or_insert(Value::Null);
            if named.is_null() || named.as_str() == Some("") {
                *named = namespace.into();
            }
        }
    }
    object
}

/// Returns the plural as Kubernetes forms it by default.
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

/// Splits a path such as `spec.containers[0].env[name.with/dots]` into steps.
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

    fn creator() -> Creator {
        Creator {
            user: "ann".into(),
            groups: Vec::new(),
        }
    }

    fn created(object: &Value) -> Request {
        review_of(object, None, Operation::Create, &creator(), "default")
    }

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
        let of = |object: Value| {
            let request = created(&object);
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

    #[test]
    fn a_namespace_that_is_empty_is_the_default_one_as_for_kubectl() {
        for namespace in [json!(""), Value::Null] {
            let object = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "x", "namespace": namespace}});
            let request = created(&object);
            assert_eq!(request.namespace, "default");
            let placed = &request.body["request"]["object"]["metadata"]["namespace"];
            assert_eq!(placed, "default");
        }
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": null});
        let request = created(&object);
        assert_eq!(
            request.body["request"]["object"]["metadata"]["namespace"],
            "default"
        );
    }

    #[test]
    fn what_is_there_makes_an_update_and_a_deletion_has_no_object() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}});
        let review = |old, operation| {
            let request = review_of(&object, old, operation, &creator(), "default");
            let request = &request.body["request"];
            (
                request["operation"].clone(),
                request["object"].is_object(),
                request["oldObject"].is_object(),
            )
        };
        let create = Operation::Create;
        assert_eq!(review(None, create), (json!("CREATE"), true, false));
        assert_eq!(review(Some(&object), create), (json!("UPDATE"), true, true));
        let delete = Operation::Delete;
        assert_eq!(review(None, delete), (json!("DELETE"), false, true));
    }

    #[test]
    fn a_review_is_judged_as_it_is() {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview",
            "request": {
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "namespace": "shop", "operation": "UPDATE",
                "object": {"metadata": {"name": "x"}},
                "userInfo": {"username": "bob"},
            },
        });
        let request = created(&review);
        assert_eq!(
            (&*request.kind, &*request.namespace, &*request.name),
            ("Pod", "shop", "x")
        );
        assert_eq!(request.body["request"]["userInfo"]["username"], "bob");
        assert_eq!(request.body["request"]["operation"], "UPDATE");
        let body = request.body.to_string();
        let read = rolegate_review::Review::parse(body.as_bytes()).unwrap();
        assert_eq!(read.namespace(), "shop");
        assert_eq!(namespace_of(&review, "default"), "shop");
    }
}
