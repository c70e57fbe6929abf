//! Role requests of pods and service accounts to AWS itself, with a token: web identity (IRSA) and
//! EKS Pod Identity. Admission validates them; agents never see them.

use std::collections::BTreeSet;

use rolegate_core::annotation::{AnnotationKeys, WEB_IDENTITY_ROLE, normalized};
use rolegate_core::config::Audience;
use rolegate_core::workload::{Phase, RoleRequest, Workload};
use serde_json::Value;
use serde_json::value::to_raw_value;

use crate::field_path::FieldRef;
use crate::json;
use crate::pod_template::PodShape;

/// The role requests of one pod or service account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WebIdentity {
    /// The requesting workload, once for each role. Its name is empty for a service account.
    pub asking: Vec<Workload>,
    /// A request for a role that the pod does not name.
    pub unnamed: Option<UnnamedRoleRequest>,
}

/// A pod that requests a role without naming it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnnamedRoleRequest {
    /// The pod, without a role request.
    pub pod: Workload,
    /// The path of the source: a variable with a non-literal value, or a token.
    pub path: String,
}

impl WebIdentity {
    /// Reads the requests of a Pod or ServiceAccount. `None` if it requests nothing, or if the
    /// object is invalid or of another kind. AWS accepts tokens for `audiences` in addition to the
    /// known ones.
    pub fn of(
        object: &Value,
        keys: &AnnotationKeys,
        audiences: &BTreeSet<Audience>,
    ) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let namespace = text("/metadata/namespace")?;
        let name = text("/metadata/name").unwrap_or_default();
        let found = match (text("/apiVersion"), text("/kind")) {
            (Some("v1"), Some("Pod")) => Self::of_pod(object, (namespace, name), keys, audiences)?,
            (Some("v1"), Some("ServiceAccount")) => Self::of_account(object, namespace, name)?,
            _ => return None,
        };
        (found != Self::default()).then_some(found)
    }

    fn of_pod(
        pod: &Value,
        (namespace, name): (&str, &str),
        keys: &AnnotationKeys,
        audiences: &BTreeSet<Audience>,
    ) -> Option<Self> {
        let raw = to_raw_value(pod).ok()?;
        let node = json::parse(&raw).ok()?;
        let shape = PodShape::read(&FieldRef::root(&node), audiences).ok()?;
        let phase = match pod.pointer("/status/phase").and_then(Value::as_str) {
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Running,
        };
        let asker = |role_request| Workload {
            phase,
            ..shape.workload(namespace, name, role_request)
        };
        let unnamed = |path: &str| UnnamedRoleRequest {
            pod: asker(RoleRequest::default()),
            path: path.to_owned(),
        };
        let mut found = Self::default();
        for variable in &shape.variables {
            match variable.value.map(normalized) {
                Some("") => {}
                Some(role) => {
                    let asking = asker(RoleRequest::for_role(role));
                    // The EKS webhook adds the variable to every container.
                    if !found.asking.contains(&asking) {
                        found.asking.push(asking);
                    }
                }
                None => found.unnamed = Some(unnamed(&variable.path)),
            }
        }
        let names_one = shape
            .role_request(keys)
            .role
            .is_some_and(|role| !role.is_empty());
        if !names_one && found == Self::default() {
            found.unnamed = shape.tokens.first().map(|token| unnamed(&token.path));
        }
        Some(found)
    }

    fn of_account(account: &Value, namespace: &str, name: &str) -> Option<Self> {
        let annotations = account.pointer("/metadata/annotations")?;
        let role = annotations.get(WEB_IDENTITY_ROLE)?.as_str()?;
        let role = normalized(role);
        if role.is_empty() {
            return None;
        }
        let shape = PodShape::of_account(name);
        Some(Self {
            asking: vec![shape.workload(namespace, "", RoleRequest::for_role(role))],
            unnamed: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, annotations: Value, spec: Value) -> Option<(Vec<String>, Option<String>)> {
        let object = json!({
            "apiVersion": "v1", "kind": kind, "spec": spec,
            "metadata": {"name": "api", "namespace": "shop", "annotations": annotations},
        });
        let found = WebIdentity::of(&object, &AnnotationKeys::default(), &BTreeSet::new())?;
        let asking = found.asking.iter().map(|asking| {
            let (name, account) = (&asking.name, &asking.service_account);
            format!(
                "{name}/{account}/{}",
                asking.role_request.role.as_deref().unwrap()
            )
        });
        Some((asking.collect(), found.unnamed.map(|unnamed| unnamed.path)))
    }

    #[test]
    fn roles_come_from_variables_and_service_accounts() {
        let variable = |value: &str| json!({"env": [{"name": "AWS_ROLE_ARN", "value": value}]});
        let token = json!([{"projected": {"sources": [
            {"serviceAccountToken": {"audience": "pods.eks.amazonaws.com"}}]}}]);
        let path = "spec.volumes[0].projected.sources[0].serviceAccountToken".to_owned();
        let none = || json!({});
        for (kind, annotations, spec, expected) in [
            (
                "Pod",
                none(),
                json!({"serviceAccountName": "a", "volumes": token,
                    "containers": [variable("x"), variable(" x"), variable("y"), variable("")]}),
                Some((vec!["api/a/x".to_owned(), "api/a/y".to_owned()], None)),
            ),
            (
                "Pod",
                none(),
                json!({"volumes": token}),
                Some((vec![], Some(path))),
            ),
            (
                "Pod",
                json!({"iam.amazonaws.com/role": "r"}),
                json!({"volumes": token}),
                None,
            ),
            (
                "Pod",
                none(),
                json!({"containers": [{"env": [{"name": "AWS_ROLE_ARN", "valueFrom": {}}]}]}),
                Some((vec![], Some("spec.containers[0].env[0]".to_owned()))),
            ),
            ("Pod", none(), json!({"containers": [{}]}), None),
            (
                "ServiceAccount",
                json!({"eks.amazonaws.com/role-arn": "z"}),
                none(),
                Some((vec!["/api/z".to_owned()], None)),
            ),
            ("ServiceAccount", none(), none(), None),
            (
                "ConfigMap",
                json!({"eks.amazonaws.com/role-arn": "z"}),
                none(),
                None,
            ),
        ] {
            assert_eq!(
                of(kind, annotations, spec.clone()),
                expected,
                "{kind} {spec}"
            );
        }
    }

    #[test]
    fn finished_pods_differ_from_running_ones() {
        for (phase, expected) in [
            (json!(null), Phase::Running),
            (json!("Pending"), Phase::Running),
            (json!("Running"), Phase::Running),
            (json!("Succeeded"), Phase::Succeeded),
            (json!("Failed"), Phase::Failed),
        ] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "api", "namespace": "shop"}, "status": {"phase": phase},
                "spec": {"containers": [{"env": [{"name": "AWS_ROLE_ARN", "value": "x"}]}]}});
            let found = WebIdentity::of(&pod, &AnnotationKeys::default(), &BTreeSet::new());
            assert_eq!(found.unwrap().asking[0].phase, expected, "{phase}");
        }
    }

    #[test]
    fn threat_31_tokens_for_ones_own_audiences_ask_for_a_role() {
        let token = |audience: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "api", "namespace": "shop"},
                "spec": {"volumes": [{"projected": {"sources": [
                    {"serviceAccountToken": {"audience": audience}}]}}]}})
        };
        let asks = |audience: &str, others: &[&str]| {
            let others = others.iter().map(|other| Audience::new(other)).collect();
            let found = WebIdentity::of(&token(audience), &AnnotationKeys::default(), &others);
            found.is_some_and(|found| found.unnamed.is_some())
        };
        assert!(asks("openshift", &[]) && asks("mine", &["Mine"]) && asks("", &[""]));
        assert!(!asks("mine", &[]) && !asks("", &["mine"]));
    }
}
