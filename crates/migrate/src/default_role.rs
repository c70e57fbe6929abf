//! Pods that name no role, and so had the default role.

use rolegate_core::template_kinds::BuiltinTemplateKind;
use serde_json::Value;

/// Returns the names of pods without the annotation of a role: `NAMESPACE/NAME`, and for objects
/// with a pod template `KIND NAMESPACE/NAME`. Pods on the host's network are left out, since they
/// reach the node's role without kube2iam, and so are finished pods.
pub(crate) fn pods_without_role(objects: &[Value], role_key: &str) -> Vec<String> {
    let mut names: Vec<_> = objects
        .iter()
        .filter_map(|object| without_role(object, role_key))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn without_role(object: &Value, role_key: &str) -> Option<String> {
    let text = |field: &str| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let is_pod = group.is_empty() && kind == "Pod";
    let pod = if is_pod {
        object
    } else {
        let mut part = object;
        for step in BuiltinTemplateKind::find(group, kind)?.path {
            part = part.get(step)?;
        }
        part
    };
    // An empty annotation means no role, even with a default role.
    let has_role = pod
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(role_key))
        .is_some_and(|role| !role.is_null());
    let is_on_host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let phase = object.pointer("/status/phase").and_then(Value::as_str);
    if has_role || is_on_host || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let of = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let name = of("/metadata/name").unwrap_or("-");
    let namespace = of("/metadata/namespace").unwrap_or("default");
    Some(if is_pod {
        format!("{namespace}/{name}")
    } else {
        format!("{kind} {namespace}/{name}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "iam.amazonaws.com/role";

    #[test]
    fn pods_that_had_the_default_role_are_named() {
        let pod = |name: &str, annotations: Value, spec: Value, phase: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": {"phase": phase},
                "metadata": {"name": name, "namespace": "shop", "annotations": annotations}})
        };
        let objects = [
            pod("plain", json!({}), json!({}), "Running"),
            pod("named", json!({KEY: "reader"}), json!({}), "Running"),
            pod("none", json!({KEY: ""}), json!({}), "Running"),
            pod("host", json!({}), json!({"hostNetwork": true}), "Running"),
            pod("ended", json!({}), json!({}), "Succeeded"),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"template": {"metadata": {}, "spec": {}}}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}),
        ];
        assert_eq!(
            pods_without_role(&objects, KEY),
            ["Deployment default/web", "shop/plain"]
        );
        assert_eq!(pods_without_role(&objects, "other/key").len(), 4);
    }
}
