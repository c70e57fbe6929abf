//! Follows a TLS key pair in a Secret and serves its current content. Such a Secret is written by
//! our controller or by cert-manager.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use rolegate_runtime::readiness::{Condition, Readiness};
use rolegate_runtime::tls::{CertificateStore, TlsFiles};
use zeroize::Zeroizing;

use crate::backoff;
use crate::error::chain;
use crate::watch::WATCH_SECONDS;

/// The key of the certificate chain in Secrets of type `kubernetes.io/tls`.
pub const TLS_CRT: &str = "tls.crt";
/// The key of the private key in Secrets of type `kubernetes.io/tls`.
pub const TLS_KEY: &str = "tls.key";
/// The key of the CA bundle, which cert-manager also writes.
pub const CA_CRT: &str = "ca.crt";

/// Interval at which the certificate's expiry is checked.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The source of a webhook's certificate.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// The controller issues it, stores it in a Secret and sets the `caBundle` of the webhook
    /// configurations.
    SelfSigned,
    /// cert-manager stores it in a Secret, and its CA injector sets the `caBundle`.
    CertManager,
    /// Mounted files. The operator sets the `caBundle`.
    Files(TlsFiles),
}

impl CertificateSource {
    /// Keeps `store` up to date. `secret` is used unless the source is files. Never returns. If
    /// there is a watch, the condition `certificate secret` reports its state.
    pub async fn follow(
        &self,
        client: Client,
        namespace: &str,
        secret: &str,
        store: &CertificateStore,
        readiness: &Readiness,
    ) {
        match self {
            Self::Files(files) => files.follow(store).await,
            Self::SelfSigned | Self::CertManager => {
                let condition = readiness.condition("certificate secret");
                follow_secret(client, namespace, secret, store, &condition).await;
            }
        }
    }
}

/// Keeps `store` up to date with the Secret `name`. Never returns. The store reports a missing or
/// invalid pair. `condition` fails until the first list succeeded, and carries a note while a later
/// watch fails. Needs `get`, `list` and `watch` on this one Secret.
pub async fn follow_secret(
    client: Client,
    namespace: &str,
    name: &str,
    store: &CertificateStore,
    condition: &Condition,
) {
    let api = Api::<Secret>::namespaced(client, namespace);
    let what = format!("Secret {namespace}/{name}");
    condition.fail(format!("{what} is not loaded yet"));
    let mut loaded = false;
    let mut failing = false;
    let mut backoff = backoff();
    loop {
        let on_loaded = || {
            if std::mem::take(&mut failing) {
                tracing::info!(secret = %name, "watching the Secret works again");
            }
            loaded = true;
            backoff.reset();
            condition.ok();
        };
        let error = watch(&api, name, &what, store, on_loaded).await;
        // A new list recovers missed events and shows that the watch is healthy again.
        let sentence = match error {
            Some(error) => format!("cannot watch {what}: {}", chain(&error)),
            None => format!("cannot watch {what}: the watch ended"),
        };
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(secret = %name, reason = sentence, "cannot watch the Secret, retrying");
        }
        if loaded {
            condition.note(sentence)
        } else {
            condition.fail(sentence)
        }
        tokio::time::sleep(backoff.next_delay()).await;
        store.check_expiry();
    }
}

/// Lists and watches until an error occurs.
async fn watch(
    api: &Api<Secret>,
    name: &str,
    what: &str,
    store: &CertificateStore,
    mut on_loaded: impl FnMut(),
) -> Option<watcher::Error> {
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api.clone(), config));
    let mut there = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(EXPIRY_CHECK_INTERVAL) => {
                store.check_expiry();
                continue;
            }
        };
        match event {
            None => return None,
            Some(Err(error)) => return Some(error),
            Some(Ok(Event::Init)) => there = false,
            Some(Ok(Event::InitApply(secret) | Event::Apply(secret))) => {
                there = true;
                offer(secret, what, store);
            }
            Some(Ok(Event::InitDone)) => {
                on_loaded();
                if !there {
                    store.report_error(format!("{what} does not exist"));
                }
            }
            Some(Ok(Event::Delete(_))) => store.report_error(format!("{what} was deleted")),
        }
    }
}

fn offer(secret: Secret, what: &str, store: &CertificateStore) {
    let mut data = secret.data.unwrap_or_default();
    let mut take = |key: &str| data.remove(key).map(|value| Zeroizing::new(value.0));
    match (take(TLS_CRT), take(TLS_KEY)) {
        // The store has reported why it rejects a pair.
        (Some(certificate), Some(key)) => drop(store.set(&certificate, &key)),
        (None, _) => store.report_error(format!("{what} has no {TLS_CRT}")),
        (_, None) => store.report_error(format!("{what} has no {TLS_KEY}")),
    }
}

#[cfg(test)]
mod tests {
    use rolegate_runtime::clock::Clock;
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_missing_key_of_a_secret() {
        let readiness = Readiness::new();
        let condition = readiness.condition("certificate");
        let store = CertificateStore::new("test", Clock::system(), condition);
        for (data, expected) in [
            (json!(null), "Secret a/b has no tls.crt"),
            (json!({"tls.key": ""}), "Secret a/b has no tls.crt"),
            (json!({"tls.crt": ""}), "Secret a/b has no tls.key"),
            (json!({"tls.crt": "", "tls.key": ""}), "BEGIN CERTIFICATE"),
        ] {
            let secret = serde_json::from_value(json!({"metadata": {}, "data": data}));
            offer(secret.unwrap(), "Secret a/b", &store);
            let why = &readiness.report().failing["certificate"];
            assert!(why.contains(expected), "{why}");
        }
    }
}
