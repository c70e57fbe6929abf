//! Builds the MutatingWebhookConfiguration for the injection of credentials.
//!
//! All new pods are sent, since the API server cannot look up whether a pod's service account has a
//! role. Pods with the skip label, mirror pods and the webhook's own namespace are left out, so that
//! a cluster starts without the webhook.

use rolegate_core::annotation::MIRROR;
use rolegate_core::config::RuleConfig;
use rolegate_core::namespace::NAME_LABEL;
use serde_json::{Value, json};

use crate::mutation::SKIP_LABEL;
use crate::webhook_configuration::{Endpoint, NAME, client_config};

/// The API server's timeout for a response, in seconds. Pods wait for new service accounts for less.
const TIMEOUT_SECONDS: u32 = 5;

/// The treatment of pods while the webhook is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// Pods are denied, and created again by their controllers.
    #[default]
    Fail,
    /// Pods are created without credentials.
    Ignore,
}

impl FailurePolicy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "Fail",
            Self::Ignore => "Ignore",
        }
    }
}

/// The inputs of the webhook configuration.
#[derive(Debug, Clone)]
pub struct MutatingRegistration<'a> {
    /// The configuration of the rules, for the exempt namespaces.
    pub config: &'a RuleConfig,
    /// The endpoint of the webhook.
    pub endpoint: Endpoint<'a>,
    /// The CA bundle of the webhook's certificate, PEM. Empty if another controller fills it in.
    pub ca_bundle: &'a [u8],
    /// The webhook's own namespace, whose pods are never sent.
    pub own_namespace: &'a str,
    /// The treatment of pods while the webhook is unavailable. Pods of exempt namespaces, such as
    /// `kube-system`, are created in any case.
    pub on_failure: FailurePolicy,
}

/// Returns the MutatingWebhookConfiguration as JSON.
pub fn mutating_configuration(registration: &MutatingRegistration<'_>) -> Value {
    let own = registration.own_namespace;
    let exempt = registration.config.exempt_namespaces.iter();
    let mut exempt: Vec<&str> = exempt
        .map(|name| &**name)
        .filter(|name| *name != own)
        .collect();
    exempt.sort_unstable();
    let mut others = exempt.clone();
    others.push(own);
    others.sort_unstable();
    let mut webhooks =
        vec![registration.webhook("inject", "NotIn", &others, registration.on_failure)];
    if !exempt.is_empty() {
        webhooks.push(registration.webhook("inject-exempt", "In", &exempt, FailurePolicy::Ignore));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": "rolegate-admission"}},
        "webhooks": webhooks,
    })
}

impl MutatingRegistration<'_> {
    fn webhook(
        &self,
        name: &str,
        operator: &str,
        namespaces: &[&str],
        on_failure: FailurePolicy,
    ) -> Value {
        let not_a_mirror = format!(
            "!has(object.metadata.annotations) || !(\"{MIRROR}\" in object.metadata.annotations)"
        );
        let rule = |resource: &str, operation: &str| {
            json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": [resource],
                "operations": [operation], "scope": "Namespaced"})
        };
        json!({
            "name": format!("{name}.rolegate.dev"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": client_config(&self.endpoint, self.ca_bundle),
            "failurePolicy": on_failure.as_str(),
            "matchPolicy": "Equivalent",
            // Containers that another webhook adds later get the variables too.
            "reinvocationPolicy": "IfNeeded",
            "rules": [rule("pods", "CREATE"), rule("pods/ephemeralcontainers", "UPDATE")],
            "namespaceSelector": {"matchExpressions": [
                {"key": NAME_LABEL, "operator": operator, "values": namespaces},
            ]},
            "objectSelector": {"matchExpressions": [
                {"key": SKIP_LABEL, "operator": "DoesNotExist"},
            ]},
            "matchConditions": [{"name": "not-a-mirror-pod", "expression": not_a_mirror}],
            "sideEffects": "None",
            "timeoutSeconds": TIMEOUT_SECONDS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exempt_namespaces_never_fail() {
        let config = RuleConfig::default();
        let made = mutating_configuration(&MutatingRegistration {
            config: &config,
            endpoint: Endpoint::Url("https://127.0.0.1/mutate"),
            ca_bundle: b"",
            own_namespace: "rolegate-system",
            on_failure: FailurePolicy::Fail,
        });
        let policies: Vec<_> = made["webhooks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|webhook| {
                let names = &webhook["namespaceSelector"]["matchExpressions"][0];
                let lists = |name: &str| {
                    let values = names["values"].as_array().unwrap();
                    values.iter().any(|value| value == name)
                };
                (
                    webhook["failurePolicy"].as_str().unwrap().to_owned(),
                    names["operator"].as_str().unwrap().to_owned(),
                    (lists("kube-system"), lists("rolegate-system")),
                )
            })
            .collect();
        let expected = [
            ("Fail", "NotIn", (true, true)),
            ("Ignore", "In", (true, false)),
        ];
        let expected = expected
            .map(|(policy, operator, lists)| (policy.to_owned(), operator.to_owned(), lists));
        assert_eq!(policies, expected);
    }
}
