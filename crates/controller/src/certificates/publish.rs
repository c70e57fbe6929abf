//! Publishes trusted authorities: to the API server in the `caBundle` of all webhooks, or to agents
//! in a ConfigMap.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Resource};
use rolegate_kube::tls_secret::CA_CRT;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::Authorities;
use super::{MANAGED_BY, MANAGER};

/// Maximum number of attempts of a write that conflicts.
const MAX_ATTEMPTS: usize = 3;

/// The result of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// The object does not exist.
    Absent,
    /// It was up to date.
    Already,
    /// It was changed.
    Changed,
}

impl Published {
    /// Combines the results for two objects of which the second may be missing.
    pub(super) fn and(self, second: Self) -> Self {
        match (self, second) {
            (Self::Changed, _) | (_, Self::Changed) => Self::Changed,
            (Self::Absent, Self::Absent) => Self::Absent,
            _ => Self::Already,
        }
    }
}

/// A kind of webhook configuration.
pub(super) trait WebhookConfiguration {
    /// Returns the names and clients of all webhooks.
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)>;
}

impl WebhookConfiguration for ValidatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (&*webhook.name, &webhook.client_config))
    }
}

impl WebhookConfiguration for MutatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (&*webhook.name, &webhook.client_config))
    }
}

/// Sets the authorities of all webhooks of the configuration.
pub(super) async fn to_webhook<K>(
    api: &Api<K>,
    name: &str,
    authorities: &Authorities,
) -> kube::Result<Published>
where
    K: WebhookConfiguration + Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let bundle = ByteString(authorities.to_pem().into_bytes());
    let mut attempts = 1..MAX_ATTEMPTS;
    loop {
        let Some(configuration) = api.get_opt(name).await? else {
            return Ok(Published::Absent);
        };
        let Some(patch) = patch(&configuration, &bundle) else {
            return Ok(Published::Already);
        };
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        match api.patch(name, &params, &Patch::Strategic(patch)).await {
            Ok(_) => return Ok(Published::Changed),
            Err(kube::Error::Api(status)) if status.code == 409 && attempts.next().is_some() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sets the authorities in the ConfigMap, and creates it if necessary, with this owner.
pub(super) async fn to_config_map(
    api: &Api<ConfigMap>,
    name: &str,
    authorities: &Authorities,
    owner: Option<&OwnerReference>,
) -> kube::Result<Published> {
    let pem = authorities.to_pem();
    let existing = api.get_opt(name).await?;
    let known = existing.as_ref().and_then(|map| map.data.as_ref());
    if known.is_some_and(|data| data.len() == 1 && data.get(CA_CRT) == Some(&pem)) {
        return Ok(Published::Already);
    }
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some([(MANAGED_BY.into(), MANAGER.into())].into()),
            owner_references: owner.cloned().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some([(CA_CRT.into(), pem)].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(map)).await?;
    Ok(Published::Changed)
}

/// Returns a patch that changes nothing else, including unknown fields, or `None` if there is
/// nothing to change. Webhooks are merged by name, and a name that was removed would be added
/// again, so the patch is conditional on the resource version.
fn patch<K>(configuration: &K, bundle: &ByteString) -> Option<Value>
where
    K: WebhookConfiguration + Resource,
{
    let webhooks: Vec<_> = configuration
        .clients()
        .filter(|(_, client)| client.ca_bundle.as_ref() != Some(bundle))
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let version = &configuration.meta().resource_version;
    (!webhooks.is_empty())
        .then(|| json!({"metadata": {"resourceVersion": version}, "webhooks": webhooks}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_minimal_and_conditional_on_the_version() {
        let configuration = |bundles: [&str; 2]| {
            let webhook = |name, bundle| {
                json!({"name": name, "clientConfig": {"url": "https://a", "caBundle": bundle},
                    "admissionReviewVersions": ["v1"], "sideEffects": "None"})
            };
            let [a, b] = bundles;
            let object = json!({"metadata": {"resourceVersion": "7"},
                "webhooks": [webhook("a", a), webhook("b", b)]});
            serde_json::from_value::<ValidatingWebhookConfiguration>(object).unwrap()
        };
        let bundle = ByteString(b"new".to_vec());
        assert_eq!(patch(&configuration(["bmV3", "bmV3"]), &bundle), None);
        assert_eq!(
            patch(&configuration(["bmV3", "b2xk"]), &bundle),
            Some(json!({"metadata": {"resourceVersion": "7"},
                "webhooks": [{"name": "b", "clientConfig": {"caBundle": "bmV3"}}]}))
        );
        let none = ValidatingWebhookConfiguration::default();
        assert_eq!(patch(&none, &bundle), None);
    }
}
