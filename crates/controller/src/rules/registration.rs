//! The gate's registration, kept up to the rules: which kinds it is asked about depends on the
//! configuration, and which objects the API server may keep to itself on what could give a role to
//! one that names none.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::PostParams;
use kube::{Api, Client};
use rolegate_admission::registration::{Endpoint, Registration, webhook_configuration};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_rules::keeper::Keeper;
use serde_json::Value;

use super::RuleOptions;

/// Annotation of a registration that somebody else keeps.
const UNMANAGED: &str = "rolegate.dev/unmanaged";

/// Keeps the registration.
pub(super) struct Registrar {
    api: Api<ValidatingWebhookConfiguration>,
    keys: AnnotationKeys,
    namespace: String,
    name: String,
}

impl Registrar {
    pub(super) fn new(client: Client, options: &RuleOptions) -> Self {
        Self {
            api: Api::all(client),
            keys: options.keys.clone(),
            namespace: options.namespace.clone(),
            name: options.webhook.clone(),
        }
    }

    /// Brings it up to date, where there is one: who installs the gate makes it.
    pub(super) async fn keep(&self, keeper: &Keeper) {
        if let Err(error) = self.look(keeper).await {
            tracing::warn!(
                reason = rolegate_kube::chain(&error),
                "cannot update the ValidatingWebhookConfiguration"
            );
        }
    }

    async fn look(&self, keeper: &Keeper) -> Result<(), kube::Error> {
        let Some(mut registered) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let annotations = registered.metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key(UNMANAGED)) {
            return Ok(());
        }
        let is = serde_json::to_value(&registered.webhooks).map_err(kube::Error::SerdeError)?;
        let Some(wanted) = self.wanted(keeper, &is) else {
            return Ok(());
        };
        if holds(&is, &wanted) {
            return Ok(());
        }
        registered.webhooks = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
        // With its resourceVersion: whoever wrote in between is looked at first.
        self.api
            .replace(&self.name, &PostParams::default(), &registered)
            .await?;
        tracing::info!("the webhook's registration follows the rules");
        Ok(())
    }

    /// The webhooks as they should be, reached and trusted as the ones that are there.
    fn wanted(&self, keeper: &Keeper, is: &Value) -> Option<Value> {
        let client = is.get(0)?.get("clientConfig")?;
        let text = |path: &str| client.pointer(path).and_then(Value::as_str);
        let endpoint = match text("/url") {
            Some(url) => Endpoint::Url(url),
            None => Endpoint::Service {
                namespace: text("/service/namespace")?,
                name: text("/service/name")?,
                path: text("/service/path").unwrap_or_default(),
                port: client
                    .pointer("/service/port")
                    .and_then(Value::as_u64)
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(443),
            },
        };
        let config = keeper.book().config();
        let mut namespaces = keeper.book().namespaces();
        let registration = Registration {
            config,
            keys: &self.keys,
            has_default_role: config.default_role.is_some()
                || namespaces.any(|namespace| namespace.default_role.is_some()),
            has_rego: keeper.rules().load().asks_policies_at_gate(),
            endpoint,
            ca_bundle: &[],
            own_namespace: &self.namespace,
        };
        let mut wanted = webhook_configuration(&registration)
            .get("webhooks")?
            .clone();
        if let (Some(bundle), Some(webhooks)) = (client.get("caBundle"), wanted.as_array_mut()) {
            for webhook in webhooks {
                if let Some(client) = webhook
                    .get_mut("clientConfig")
                    .and_then(Value::as_object_mut)
                {
                    client.insert("caBundle".into(), bundle.clone());
                }
            }
        }
        Some(wanted)
    }
}

/// Whether `is` says all that `wanted` says; the API server fills in what is left out.
fn holds(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| is.get(key).is_some_and(|is| holds(is, wanted))),
        (Value::Array(is), Value::Array(wanted)) => {
            is.len() == wanted.len() && is.iter().zip(wanted).all(|(is, wanted)| holds(is, wanted))
        }
        (is, wanted) => is == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        let wanted = json!([{"name": "a", "rules": [{"resources": ["pods"]}]}]);
        let filled = json!([{"name": "a", "objectSelector": {}, "rules": [{"resources": ["pods"], "scope": "*"}]}]);
        assert!(holds(&filled, &wanted));
        for other in [
            json!([]),
            json!([{"name": "b", "rules": [{"resources": ["pods"]}]}]),
            json!([{"name": "a", "rules": [{"resources": ["pods", "jobs"]}]}]),
            json!([{"name": "a", "rules": []}]),
        ] {
            assert!(!holds(&other, &wanted), "{other}");
        }
    }
}
