//! A TLS pair kept in a Secret: whoever serves it follows the Secret and serves what it holds now.
//! Our controller writes such a Secret, and so does cert-manager.

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
use crate::failure::chain;
use crate::watch::WATCH_SECONDS;

/// The key of the chain in Secrets of type `kubernetes.io/tls`.
pub const TLS_CRT: &str = "tls.crt";
/// The key of the private key in Secrets of type `kubernetes.io/tls`.
pub const TLS_KEY: &str = "tls.key";
/// The key of the authorities that signed the chain, where cert-manager has it too.
pub const CA_CRT: &str = "ca.crt";

/// How often somebody looks whether the certificate has ended.
const LOOK: Duration = Duration::from_secs(60);

/// Where the certificate of a webhook comes from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// Our controller makes it, keeps it in a Secret and tells the API server whom to trust.
    SelfMade,
    /// cert-manager keeps it in a Secret, and its injector tells the API server.
    CertManager,
    /// Files that somebody mounts; whom to trust is theirs to tell.
    Files(TlsFiles),
}

impl CertificateSource {
    /// Keeps `store` up to the source; `secret` is used unless it is files. Never returns. Where
    /// there is a watch, the condition `certificate secret` tells how it goes.
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
            Self::SelfMade | Self::CertManager => {
                let condition = readiness.condition("certificate secret");
                follow_secret(client, namespace, secret, store, &condition).await;
            }
        }
    }
}

/// Keeps `store` up to the Secret `name`. Never returns. What is wrong with the pair, or that there
/// is none, is said by the store; `condition` fails until the first look succeeded, and is noted
/// while the Secret can't be watched later on. Needs `get`, `list` and `watch` on this one Secret.
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
    let mut waits = backoff();
    loop {
        let on_loaded = || {
            if std::mem::take(&mut failing) {
                tracing::info!(secret = %name, "the Secret is watched again");
            }
            loaded = true;
            waits = backoff();
            condition.ok();
        };
        let error = watch(&api, name, &what, store, on_loaded).await;
        // A new list shows what was missed, and that all is well again.
        let sentence = match error {
            Some(error) => format!("{what} cannot be watched: {}", chain(&error)),
            None => format!("{what} cannot be watched: the watch ended"),
        };
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(secret = %name, reason = sentence, "cannot watch the Secret, retrying");
        }
        match loaded {
            true => condition.note(sentence),
            false => condition.fail(sentence),
        }
        let wait = waits.next().unwrap_or(LOOK);
        tokio::time::sleep(wait).await;
        store.look();
    }
}

/// Lists and watches until something goes wrong.
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
            () = tokio::time::sleep(LOOK) => {
                store.look();
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
                    store.complain(format!("{what} is not there"));
                }
            }
            Some(Ok(Event::Delete(_))) => store.complain(format!("{what} was deleted")),
        }
    }
}

fn offer(secret: Secret, what: &str, store: &CertificateStore) {
    let mut data = secret.data.unwrap_or_default();
    let mut take = |key: &str| data.remove(key).map(|value| Zeroizing::new(value.0));
    match (take(TLS_CRT), take(TLS_KEY)) {
        // The store has said why it refuses a pair.
        (Some(certificate), Some(key)) => drop(store.set(&certificate, &key)),
        (None, _) => store.complain(format!("{what} has no {TLS_CRT}")),
        (_, None) => store.complain(format!("{what} has no {TLS_KEY}")),
    }
}

#[cfg(test)]
mod tests {
    use rolegate_runtime::clock::Clock;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_without_a_pair_is_told_by_what_it_lacks() {
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
