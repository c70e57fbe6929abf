//! Trims objects to the fields that decisions depend on. A cluster may have very many of them.

use rolegate_core::annotation::WEB_IDENTITY_ROLE;
use rolegate_review::ROLE_VARIABLE;
use serde_json::Value;

/// Returns the object as it is.
pub(super) fn whole(object: Value) -> Value {
    object
}

/// Returns a pod without most of its fields. Of containers and volumes it keeps the AWS settings
/// that request a role, see [`rolegate_review::WebIdentity`].
pub(super) fn trimmed_pod(pod: Value) -> Value {
    let mut pod = without_history(pod);
    keep(
        pod.get_mut("spec"),
        &[
            "nodeName",
            "serviceAccountName",
            "hostNetwork",
            "initContainers",
            "containers",
            "ephemeralContainers",
            "volumes",
        ],
    );
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{kind}"));
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            keep(Some(&mut *container), &["env"]);
            if let Some(Value::Array(variables)) = container.get_mut("env") {
                variables.retain(|one| one.get("name").is_some_and(|name| name == ROLE_VARIABLE));
            }
        }
    }
    if let Some(Value::Array(volumes)) = pod.pointer_mut("/spec/volumes") {
        volumes.retain(|volume| volume.get("projected").is_some());
    }
    pod
}

/// Returns a pod as it was created, with the status fields that decisions depend on.
pub(super) fn without_history(mut pod: Value) -> Value {
    keep(pod.get_mut("status"), &["phase", "podIP", "podIPs"]);
    if let Some(Value::Object(annotations)) = pod.pointer_mut("/metadata/annotations") {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    pod
}

/// Returns a service account with its role only.
pub(super) fn trimmed_account(mut account: Value) -> Value {
    keep(Some(&mut account), &["apiVersion", "kind", "metadata"]);
    keep(
        account.get_mut("metadata"),
        &["name", "namespace", "annotations"],
    );
    keep(
        account.pointer_mut("/metadata/annotations"),
        &[WEB_IDENTITY_ROLE],
    );
    if let Some(Value::Object(metadata)) = account.get_mut("metadata") {
        metadata.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    }
    account
}

fn keep(part: Option<&mut Value>, fields: &[&str]) {
    if let Some(Value::Object(part)) = part {
        part.retain(|field, _| fields.contains(&field.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rolegate_core::annotation::AnnotationKeys;
    use rolegate_review::WebIdentity;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_aws_for_a_role_is_left_of_a_pod() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "api-0", "namespace": "shop", "labels": {"app": "api"}},
            "spec": {
                "serviceAccountName": "api", "restartPolicy": "Always",
                "containers": [{"name": "app", "image": "app", "env": [
                    {"name": "HOME", "value": "/"}, {"name": "AWS_ROLE_ARN", "value": "reader"}]}],
                "volumes": [{"name": "x", "emptyDir": {}}],
            },
            "status": {"phase": "Running", "conditions": []},
        });
        let trimmed = trimmed_pod(pod.clone());
        assert_eq!(
            trimmed["spec"],
            json!({
                "serviceAccountName": "api", "volumes": [],
                "containers": [{"env": [{"name": "AWS_ROLE_ARN", "value": "reader"}]}],
            })
        );
        assert_eq!(trimmed["status"], json!({"phase": "Running"}));
        let keys = AnnotationKeys::default();
        let none = BTreeSet::new();
        let asks = WebIdentity::of(&trimmed, &keys, &none);
        assert_eq!(
            (asks.is_some(), asks),
            (true, WebIdentity::of(&pod, &keys, &none))
        );
        let mut token = pod;
        token["spec"]["containers"] = json!([]);
        token["spec"]["volumes"] = json!([{"projected": {"sources": [
            {"serviceAccountToken": {"audience": "pods.eks.amazonaws.com"}}]}}]);
        let asks = WebIdentity::of(&trimmed_pod(token), &keys, &none).unwrap();
        assert!(asks.unnamed.is_some());
    }

    #[test]
    fn accounts_are_left_with_their_role() {
        let account = |annotations: Value| {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "secrets": [],
                "metadata": {"name": "api", "namespace": "shop", "annotations": annotations}})
        };
        let role = json!({"eks.amazonaws.com/role-arn": "reader"});
        let trimmed = trimmed_account(account(role.clone()));
        assert_eq!(trimmed["metadata"]["annotations"], role);
        let trimmed = trimmed_account(account(json!({"x": "y"})));
        assert!(trimmed.pointer("/metadata/annotations").is_none());
    }
}
