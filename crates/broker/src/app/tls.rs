//! The broker's certificate, and the CAs of its clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use prometheus_client::registry::Registry;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Condition;
use rolegate_runtime::supervisor::Supervisor;
use rolegate_runtime::tls::{
    CertificateFile, CertificateStore, ClientAuthorities, Expires, ExpiryCollector, MutualTls,
};

use super::{BrokerOptions, StartError};

/// Interval at which a client CA file is read.
const CA_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// The certificate of all ports.
pub(super) struct BrokerTls {
    store: Arc<CertificateStore>,
    clock: Clock,
}

impl BrokerTls {
    /// Starts to follow the certificate, and the expiry of all certificates.
    pub(super) fn start(
        options: &BrokerOptions,
        client: Client,
        registry: &mut Registry,
        supervisor: &mut Supervisor,
    ) -> Self {
        let store = Arc::new(CertificateStore::new(
            "broker",
            options.clock.clone(),
            supervisor.readiness().condition("certificate"),
        ));
        let mut expiring: Vec<Arc<dyn Expires>> = vec![store.clone()];
        let kiam_ca = options.kiam.as_ref().map(|kiam| &kiam.client_ca);
        for (name, path) in [
            ("client-ca", options.client_ca.as_ref()),
            ("kiam-client-ca", kiam_ca),
        ] {
            if let Some(path) = path {
                let file = Arc::new(CertificateFile::of_authorities(name, path.clone()));
                expiring.push(file.clone());
                supervisor.spawn(async move { file.follow().await });
            }
        }
        ExpiryCollector::register(registry, expiring);

        let (source, (namespace, name)) = (options.certificate.clone(), options.secret.clone());
        let (followed, readiness) = (store.clone(), supervisor.readiness().clone());
        supervisor.spawn_required("certificate source", async move {
            source
                .follow(client, &namespace, &name, &followed, &readiness)
                .await;
        });
        Self {
            store,
            clock: options.clock.clone(),
        }
    }

    /// Creates the configuration of a port with clients of the given CAs.
    pub(super) fn port(
        &self,
        authorities: &Arc<ClientAuthorities>,
    ) -> Result<MutualTls, StartError> {
        MutualTls::new(self.store.clone(), authorities.clone(), self.clock.clone())
            .map_err(|error| StartError::Tls(error.to_string()))
    }
}

/// Reloads a CA file periodically.
pub(super) async fn follow_authorities(
    path: PathBuf,
    authorities: Arc<ClientAuthorities>,
    condition: Condition,
) {
    loop {
        match load(&path, &authorities).await {
            Ok(()) => condition.ok(),
            Err(why) => condition.fail(format!("{}: {why}", path.display())),
        }
        tokio::time::sleep(CA_POLL_INTERVAL).await;
    }
}

async fn load(path: &Path, authorities: &ClientAuthorities) -> Result<(), String> {
    let pem = tokio::fs::read(path)
        .await
        .map_err(|error| error.to_string())?;
    authorities.set(&pem)
}
