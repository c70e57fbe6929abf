//! The ValidatingWebhookConfiguration and, if credentials are injected into pods, the
//! MutatingWebhookConfiguration: created once the webhook answers, and updated when the rules
//! change. The validating configuration determines the kinds that the webhook reviews. The API server may skip
//! objects without a role request only while neither a default role nor a policy applies to them.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::decision::NotSynced;
use rolegate_core::layer::Mode;
use rolegate_core::names;
use rolegate_kube::tls_secret::CA_CRT;
use rolegate_review::mutating_configuration::{MutatingRegistration, mutating_configuration};
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};
use rolegate_rules::store::RuleStoreWriter;
use rolegate_runtime::readiness::Condition;
use serde_json::Value;

use super::{InjectionRegistration, RuleOptions};
use crate::owner::Owner;

/// Annotation of a webhook configuration that an administrator maintains. The controller leaves it
/// unchanged.
const UNMANAGED: &str = "rolegate.dev/unmanaged";
/// The label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// cert-manager's annotation of a Secret that names the Certificate which the Secret holds.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";
/// cert-manager's annotation that names the Certificate whose authority its injector writes into a
/// webhook configuration.
const INJECT_CA_FROM: &str = "cert-manager.io/inject-ca-from";
/// The controller's ClusterRole, which owns the webhook configuration, so that uninstalling
/// rolegate deletes both. A webhook configuration without a running webhook blocks every write of
/// the kinds that it covers.
const OWNER: &str = names::CONTROLLER;
/// The label of objects that the controller creates.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", names::CONTROLLER);
/// The Service's port to which the API server sends reviews.
const PORT: u16 = 443;
/// The interval between attempts while the webhook is not ready or an update failed.
const RETRY: Duration = Duration::from_secs(3);
/// Timeout of one update of the webhook configuration.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A kind of webhook configuration.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Validating,
    Mutating(InjectionRegistration),
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Self::Validating => ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
            Self::Mutating(_) => mutating(),
        }
    }

    /// Returns the path to which the API server sends reviews.
    fn path(self) -> &'static str {
        match self {
            Self::Validating => "/validate",
            Self::Mutating(_) => "/mutate",
        }
    }
}

fn mutating() -> ApiResource {
    ApiResource::erase::<MutatingWebhookConfiguration>(&())
}

/// Creates and updates the webhook configurations.
pub(super) struct Registrar {
    client: Client,
    options: RuleOptions,
    condition: Condition,
    /// The last logged reason why the webhook configuration is not up to date, so that each is
    /// logged once.
    waits: Option<String>,
    error: Option<String>,
}

/// The state of the registration.
#[derive(Debug)]
enum State {
    /// It is up to date.
    Current,
    /// It is not created yet, with the condition that is missing.
    Waits(String),
    /// It is left unchanged, with the reason.
    Kept(String),
}

/// The parts of a webhook configuration that come from the cluster instead of the rules.
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
            error: None,
        }
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), resource)
    }

    /// Updates the webhook configuration, or creates it once the webhook answers. Returns the time
    /// until the next attempt if one is needed without a change.
    pub(super) async fn keep(&mut self, writer: &RuleStoreWriter) -> Option<Duration> {
        let state = tokio::time::timeout(TIMEOUT, self.reconcile_all(writer)).await;
        let state = match state {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => return self.failed(rolegate_kube::chain(&error)),
            Err(_) => {
                let seconds = TIMEOUT.as_secs();
                return self.failed(format!("the API server did not answer within {seconds} s"));
            }
        };
        self.error = None;
        let (what, waits) = match &state {
            State::Current => {
                self.condition.ok();
                (None, None)
            }
            State::Kept(why) => {
                let what = format!("the webhook configuration is left as it is: {why}");
                (Some(what), None)
            }
            State::Waits(what) => {
                let what = format!("the webhook configuration is not created yet: {what}");
                (Some(what), Some(RETRY))
            }
        };
        if let Some(what) = &what {
            if self.waits.as_ref() != Some(what) {
                tracing::info!(reason = what, "the webhook configuration is not up to date");
            }
            self.condition.note(what.clone());
        }
        self.waits = what;
        waits
    }

    /// Returns the error of the last update. An update that succeeds clears it.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn failed(&mut self, error: String) -> Option<Duration> {
        tracing::warn!(reason = error, "cannot update the webhook configuration");
        self.condition.note(error.clone());
        self.error = Some(error);
        Some(RETRY)
    }

    /// Reconciles both kinds. Returns the first state other than that all is up to date.
    async fn reconcile_all(&self, writer: &RuleStoreWriter) -> Result<State, kube::Error> {
        let validating = self.reconcile(Kind::Validating, writer).await?;
        let Some(injection) = self.options.injection else {
            self.remove_mutating().await?;
            return Ok(validating);
        };
        let mutating = self.reconcile(Kind::Mutating(injection), writer).await?;
        Ok(match validating {
            State::Current => mutating,
            other => other,
        })
    }

    /// Deletes the MutatingWebhookConfiguration that an earlier setting created. Otherwise the API
    /// server would deny pods because nothing serves it.
    async fn remove_mutating(&self) -> Result<(), kube::Error> {
        let api = self.api(&mutating());
        let registered = match api.get_opt(&self.options.webhook).await {
            // Rights that were written for an earlier version.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            found => found?,
        };
        let labels = registered.as_ref().map(|found| &found.metadata.labels);
        let labels = labels.and_then(Option::as_ref);
        if labels
            .and_then(|labels| labels.get(MANAGED_BY.0))
            .map(String::as_str)
            != Some(MANAGED_BY.1)
        {
            return Ok(());
        }
        api.delete(&self.options.webhook, &DeleteParams::default())
            .await?;
        tracing::info!("deleted the MutatingWebhookConfiguration");
        Ok(())
    }

    async fn reconcile(&self, kind: Kind, writer: &RuleStoreWriter) -> Result<State, kube::Error> {
        let api = self.api(&kind.resource());
        let registered = api.get_opt(&self.options.webhook).await?;
        match (registered, writer.missing()) {
            // The configuration that is missing may have restricted more than the defaults do.
            (Some(_), Some(missing)) => Ok(State::Kept(missing.to_string())),
            (Some(registered), None) => {
                self.update(kind, writer, registered).await?;
                Ok(State::Current)
            }
            (None, _) if !self.options.register => Ok(State::Current),
            (None, Some(missing)) => Ok(State::Waits(missing.to_string())),
            (None, None) => {
                if let Some(part) = writer.not_synced() {
                    return Ok(State::Waits(part.as_str().into()));
                }
                match self.readiness().await? {
                    Ok(ready) => {
                        self.create(kind, writer, &ready).await?;
                        Ok(State::Current)
                    }
                    Err(waits) => Ok(State::Waits(waits)),
                }
            }
        }
    }

    /// Checks that the webhook answers the API server with a certificate that the API server can
    /// verify. The inner error names the missing part.
    async fn readiness(&self) -> Result<Result<Ready, String>, kube::Error> {
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
            return Ok(Err(what));
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
            return Ok(Err(what));
        }
        Ok(Ok(Ready {
            ca_bundle,
            inject_ca_from,
        }))
    }

    async fn create(
        &self,
        kind: Kind,
        writer: &RuleStoreWriter,
        ready: &Ready,
    ) -> Result<(), kube::Error> {
        let endpoint = Endpoint::Service {
            namespace: &self.options.namespace,
            name: &self.options.service,
            path: kind.path(),
            port: PORT,
        };
        let registration = self.configuration(kind, writer, endpoint, &ready.ca_bundle);
        let mut registration: DynamicObject =
            serde_json::from_value(registration).map_err(kube::Error::SerdeError)?;
        let metadata = &mut registration.metadata;
        metadata.name = Some(self.options.webhook.clone());
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
        if let Some(from) = &ready.inject_ca_from {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(INJECT_CA_FROM.into(), from.clone());
        }
        metadata.owner_references = self.owner().await?.references();
        let (api, parameters) = (self.api(&kind.resource()), PostParams::default());
        api.create(&parameters, &registration).await?;
        tracing::info!(
            webhook = self.options.webhook,
            path = kind.path(),
            "created the webhook configuration"
        );
        Ok(())
    }

    /// Returns the object that owns the webhook configuration. It is absent if rolegate was installed
    /// with other names.
    async fn owner(&self) -> kube::Result<Owner> {
        Owner::find::<ClusterRole>(&Api::all(self.client.clone()), OWNER).await
    }

    /// Returns the webhook configuration as JSON.
    fn configuration(
        &self,
        kind: Kind,
        writer: &RuleStoreWriter,
        endpoint: Endpoint<'_>,
        ca_bundle: &[u8],
    ) -> Value {
        match kind {
            Kind::Validating => {
                webhook_configuration(&self.registration(writer, endpoint, ca_bundle))
            }
            Kind::Mutating(injection) => mutating_configuration(&MutatingRegistration {
                config: writer.builder().config(),
                endpoint,
                ca_bundle,
                own_namespace: &self.options.namespace,
                on_failure: injection.on_failure,
            }),
        }
    }

    fn registration<'a>(
        &'a self,
        writer: &'a RuleStoreWriter,
        endpoint: Endpoint<'a>,
        ca_bundle: &'a [u8],
    ) -> Registration<'a> {
        let config = writer.builder().config();
        let keys: &AnnotationKeys = &self.options.keys;
        let mut namespaces = writer.builder().namespaces();
        let not_synced = writer.not_synced();
        Registration {
            config,
            keys,
            // Rules that are not loaded may contain a default role, or a policy that reviews all
            // objects.
            has_default_role: config.default_role.is_some()
                || not_synced == Some(NotSynced::Namespaces)
                || namespaces.any(|namespace| namespace.default_role.is_some()),
            has_rego: not_synced == Some(NotSynced::Policies)
                || writer.rules().load().asks_policies_at_admission(),
            endpoint,
            ca_bundle,
            own_namespace: &self.options.namespace,
            requires_injection: self
                .options
                .injection
                .map_or(Mode::Off, |injection| injection.require),
        }
    }

    async fn update(
        &self,
        kind: Kind,
        writer: &RuleStoreWriter,
        mut registered: DynamicObject,
    ) -> Result<(), kube::Error> {
        let annotations = registered.metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key(UNMANAGED)) {
            return Ok(());
        }
        let Some(fields) = registered.data.as_object_mut() else {
            return Ok(());
        };
        let is = fields.get("webhooks").cloned().unwrap_or_default();
        let Some(wanted) = self.wanted(kind, writer, &is) else {
            return Ok(());
        };
        if holds(&is, &wanted) {
            return Ok(());
        }
        fields.insert("webhooks".into(), wanted);
        // The resourceVersion makes the API server reject the write if another client has changed
        // the object since it was read. The next attempt then starts from that change.
        self.api(&kind.resource())
            .replace(&self.options.webhook, &PostParams::default(), &registered)
            .await?;
        tracing::info!("updated the webhook configuration");
        Ok(())
    }

    /// Returns the wanted webhooks, with the address and the authority of the existing ones, which
    /// an administrator may have set.
    fn wanted(&self, kind: Kind, writer: &RuleStoreWriter, is: &Value) -> Option<Value> {
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
        let mut wanted = self
            .configuration(kind, writer, endpoint, &[])
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
        // By the API's definition, an endpoint without this condition is ready.
        let ready = conditions.and_then(|conditions| conditions.ready);
        ready.unwrap_or(true) && !endpoint.addresses.is_empty()
    };
    slice.endpoints.iter().any(ready)
}

/// The fields of a webhook that restrict which objects the API server sends. A field that is no
/// longer wanted must be removed, because it would let objects bypass the webhook.
const LIMITS: [&str; 3] = ["matchConditions", "namespaceSelector", "objectSelector"];

/// Returns true if `is` contains all of `wanted` and has no further restriction. Other additional
/// fields are defaults that the API server filled in.
fn holds(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => {
            let limits_no_more = LIMITS
                .iter()
                .all(|key| wanted.contains_key(*key) || is.get(*key).is_none_or(is_empty));
            let has = |(key, wanted): (&String, &Value)| match is.get(key) {
                Some(is) if LIMITS.contains(&key.as_str()) => is == wanted,
                Some(is) => holds(is, wanted),
                None => false,
            };
            limits_no_more && wanted.iter().all(has)
        }
        (Value::Array(is), Value::Array(wanted)) => {
            is.len() == wanted.len() && is.iter().zip(wanted).all(|(is, wanted)| holds(is, wanted))
        }
        (is, wanted) => is == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
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

    #[test]
    fn a_limit_that_is_not_wanted_any_more_is_a_difference() {
        let wanted = json!([{"name": "a"}]);
        let condition = json!([{"name": "c", "expression": "true"}]);
        let selector = json!({"matchLabels": {"a": "b"}});
        for (field, value) in [
            ("matchConditions", &condition),
            ("namespaceSelector", &selector),
            ("objectSelector", &selector),
        ] {
            let limited = json!([{"name": "a", field: value}]);
            assert!(!holds(&limited, &wanted), "{field}");
            assert!(holds(&limited, &limited), "{field}");
        }
        let empty = json!([{"name": "a", "matchConditions": [], "objectSelector": {}}]);
        assert!(holds(&empty, &wanted));
    }
}
