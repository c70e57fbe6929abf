//! Publishes trusted authorities: to the API server in the `caBundle` of all webhooks, or to agents
//! in a ConfigMap.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams};
use rolegate_kube::tls_secret::CA_CRT;
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

/// Sets the authorities of all webhooks of the configuration.
pub(super) async fn to_webhook(
    api: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    authorities: &Authorities,
) -> kube::Result<Published> {
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
fn patch(configuration: &ValidatingWebhookConfiguration, bundle: &ByteString) -> Option<Value> {
    let webhooks: Vec<_> = configuration
        .webhooks
        .iter()
        .flatten()
        .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(bundle))
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let version = &configuration.metadata.resource_version;
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
            serde_json::from_value(object).unwrap()
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
