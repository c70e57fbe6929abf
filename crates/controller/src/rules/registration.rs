//! The webhook's registration: made once the webhook answers, and kept up to the rules. Which kinds it is
//! asked about depends on the configuration, and which objects the API server may keep to itself on what
//! could give a role to one that names none.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use rolegate_admission::registration::{Endpoint, Registration, webhook_configuration};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_kube::tls_secret::CA_CRT;
use rolegate_rules::keeper::Keeper;
use rolegate_runtime::readiness::Condition;
use serde_json::Value;

use super::RuleOptions;

/// Annotation of a registration that somebody else keeps.
const UNMANAGED: &str = "rolegate.dev/unmanaged";
/// The label of the Service that endpoints belong to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// cert-manager's name of the Certificate that a Secret was made for.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";
/// The Certificate whose authority cert-manager's injector writes into a registration.
const INJECT_CA_FROM: &str = "cert-manager.io/inject-ca-from";
/// The right of the controller, with which the registration goes: a registration without a webhook
/// would refuse what nobody judges.
const OWNER: &str = "rolegate-controller";
/// The label of what is ours.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "rolegate-controller");
/// The path and the port at which the Service's webhook is asked.
const PATH: &str = "/validate";
const PORT: u16 = 443;
/// How long until it is looked again whether the webhook answers.
const RETRY: Duration = Duration::from_secs(3);

/// Keeps the registration.
pub(super) struct Registrar {
    client: Client,
    options: RuleOptions,
    condition: Condition,
    /// What it waits for, as it was last logged.
    waits: Option<String>,
}

/// What the registration waits for.
#[derive(Debug, PartialEq, Eq)]
struct Waits(String);

/// What a registration is made of beside the rules.
struct Ready {
    ca_bundle: Vec<u8>,
    inject_ca_from: Option<String>,
}

impl Registrar {
    pub(super) fn new(client: Client, options: &RuleOptions, condition: Condition) -> Self {
        Self {
            client,
            options: options.clone(),
            condition,
            waits: None,
        }
    }

    fn api(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Brings it up to date, and makes it once the webhook answers. `Some`: when to look again, though
    /// nothing changes.
    pub(super) async fn keep(&mut self, keeper: &Keeper) -> Option<Duration> {
        let waits = match self.look(keeper).await {
            Ok(waits) => waits,
            Err(error) => {
                let error = rolegate_kube::chain(&error);
                tracing::warn!(
                    reason = error,
                    "cannot update the ValidatingWebhookConfiguration"
                );
                self.condition.note(error);
                return Some(RETRY);
            }
        };
        match &waits {
            None => self.condition.ok(),
            Some(Waits(what)) => {
                if self.waits.as_ref() != Some(what) {
                    tracing::info!(reason = what, "the webhook is not registered yet");
                }
                self.condition
                    .note(format!("the webhook is not registered yet: {what}"));
            }
        }
        self.waits = waits.map(|Waits(what)| what);
        self.waits.is_some().then_some(RETRY)
    }

    async fn look(&self, keeper: &Keeper) -> Result<Option<Waits>, kube::Error> {
        let name = &self.options.webhook;
        match self.api().get_opt(name).await? {
            Some(registered) => {
                self.update(keeper, registered).await?;
                Ok(None)
            }
            None if !self.options.register => Ok(None),
            None => {
                if let Some(missing) = keeper.missing() {
                    return Ok(Some(Waits(missing.to_string())));
                }
                match self.readiness().await? {
                    Ok(ready) => {
                        self.create(keeper, &ready).await?;
                        Ok(None)
                    }
                    Err(waits) => Ok(Some(waits)),
                }
            }
        }
    }

    /// Whether the API server would get an answer that it trusts.
    async fn readiness(&self) -> Result<Result<Ready, Waits>, kube::Error> {
        let RuleOptions {
            namespace,
            service,
            secret,
            ..
        } = &self.options;
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), namespace);
        let of_service = ListParams::default().labels(&format!("{SERVICE_LABEL}={service}"));
        let slices = slices.list(&of_service).await?;
        if !slices.iter().any(has_ready_endpoint) {
            let what = format!("Service {namespace}/{service} has no ready endpoint");
            return Ok(Err(Waits(what)));
        }
        let secrets = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let found = secrets.get_opt(secret).await?;
        let ca_bundle = found
            .as_ref()
            .and_then(|found| found.data.as_ref()?.get(CA_CRT))
            .map(|ByteString(bundle)| bundle.clone())
            .unwrap_or_default();
        let certificate = found
            .as_ref()
            .and_then(|found| found.metadata.annotations.as_ref()?.get(CERTIFICATE_NAME));
        let inject_ca_from = certificate.map(|name| format!("{namespace}/{name}"));
        if ca_bundle.is_empty() && inject_ca_from.is_none() {
            let what = format!("Secret {namespace}/{secret} has no {CA_CRT}");
            return Ok(Err(Waits(what)));
        }
        Ok(Ok(Ready {
            ca_bundle,
            inject_ca_from,
        }))
    }

    async fn create(&self, keeper: &Keeper, ready: &Ready) -> Result<(), kube::Error> {
        let endpoint = Endpoint::Service {
            namespace: &self.options.namespace,
            name: &self.options.service,
            path: PATH,
            port: PORT,
        };
        let registration = self.registration(keeper, endpoint, &ready.ca_bundle);
        let mut registration: ValidatingWebhookConfiguration =
            serde_json::from_value(webhook_configuration(&registration))
                .map_err(kube::Error::SerdeError)?;
        let metadata = &mut registration.metadata;
        metadata.name = Some(self.options.webhook.clone());
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
        if let Some(from) = &ready.inject_ca_from {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(INJECT_CA_FROM.into(), from.clone());
        }
        metadata.owner_references = self.owner().await?.map(|owner| vec![owner]);
        let (api, parameters) = (self.api(), PostParams::default());
        api.create(&parameters, &registration).await?;
        tracing::info!(webhook = self.options.webhook, "the webhook is registered");
        Ok(())
    }

    /// What the registration is deleted with; `None` where it was installed by other names.
    async fn owner(&self) -> Result<Option<OwnerReference>, kube::Error> {
        let roles = Api::<PartialObjectMeta<ClusterRole>>::all(self.client.clone());
        let role = match roles.get_opt(OWNER).await {
            Ok(role) => role,
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            Err(error) => return Err(error),
        };
        Ok(role
            .and_then(|role| role.metadata.uid)
            .map(|uid| OwnerReference {
                api_version: "rbac.authorization.k8s.io/v1".into(),
                kind: "ClusterRole".into(),
                name: OWNER.into(),
                uid,
                ..OwnerReference::default()
            }))
    }

    fn registration<'a>(
        &'a self,
        keeper: &'a Keeper,
        endpoint: Endpoint<'a>,
        ca_bundle: &'a [u8],
    ) -> Registration<'a> {
        let config = keeper.book().config();
        let keys: &AnnotationKeys = &self.options.keys;
        let mut namespaces = keeper.book().namespaces();
        Registration {
            config,
            keys,
            has_default_role: config.default_role.is_some()
                || namespaces.any(|namespace| namespace.default_role.is_some()),
            has_rego: keeper.rules().load().asks_policies_at_gate(),
            endpoint,
            ca_bundle,
            own_namespace: &self.options.namespace,
        }
    }

    async fn update(
        &self,
        keeper: &Keeper,
        mut registered: ValidatingWebhookConfiguration,
    ) -> Result<(), kube::Error> {
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
        self.api()
            .replace(&self.options.webhook, &PostParams::default(), &registered)
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
        let registration = self.registration(keeper, endpoint, &[]);
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

fn has_ready_endpoint(slice: &EndpointSlice) -> bool {
    let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // What is not said counts as ready.
        let ready = conditions.and_then(|conditions| conditions.ready);
        ready.unwrap_or(true) && !endpoint.addresses.is_empty()
    };
    slice.endpoints.iter().any(ready)
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
