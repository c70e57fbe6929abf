//! Issues self-signed serving certificates for the webhook and the broker. A certificate is stored
//! in a Secret that the replicas follow, and its authority is published in the webhooks' `caBundle`
//! or in a ConfigMap.
//!
//! Each certificate has an authority of its own, whose key is discarded at once. A renewal takes
//! these steps, so that no request fails: the new authority is published in addition to the old
//! one; later, when every reader has it, the Secret gets the new pair; the old authority stays
//! trusted until it expires. The Secret also holds the trusted authorities, so the next leader can
//! continue from it alone.

mod issue;
pub mod plan;
mod publish;
#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::names;
use rolegate_kube::chain;
use rolegate_kube::tls_secret::{CA_CRT, TLS_CRT, TLS_KEY};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Condition;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize;

use crate::leader_task::LeaderTask;
use crate::owner::Owner;
use issue::{Issued, issue};
use plan::{Action, Authorities, Found, Why, plan};
use publish::{Published, to_config_map, to_webhook};

/// Our field manager, and the value of the label below.
const MANAGER: &str = names::CONTROLLER;
/// The label of objects managed by rolegate.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The type of Secrets with a key pair.
const TLS_TYPE: &str = "kubernetes.io/tls";
/// Interval at which everything is checked, whatever the watches report.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum time between two checks, however often objects change.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Delay after a failed check.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a self-signed certificate.
#[derive(Debug, Clone)]
pub struct SelfSigned {
    /// The namespace of the Service and the Secret.
    pub namespace: String,
    /// The Service that clients connect to.
    pub service: String,
    /// The Secret with the key pair.
    pub secret: String,
    /// The object that publishes the authorities.
    pub trust: Trust,
    /// Names and addresses in addition to the Service's.
    pub extra_names: Vec<String>,
    /// Validity of a certificate. It is renewed after two thirds.
    pub lifetime: Duration,
    /// Time between publishing a new authority and serving its certificate. API servers watch
    /// webhook configurations, so seconds are enough for them.
    pub settle: Duration,
}

impl SelfSigned {
    /// Options for the webhook, with the default names and 90 days.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            service: names::ADMISSION.into(),
            secret: names::ADMISSION_TLS.into(),
            trust: Trust::Webhook(names::WEBHOOK.into()),
            extra_names: Vec::new(),
            lifetime: Duration::from_secs(90 * 86_400),
            settle: Duration::from_secs(60),
        }
    }

    /// Options for the broker, with the default names and 90 days.
    pub fn of_broker(namespace: impl Into<String>) -> Self {
        Self {
            service: names::BROKER.into(),
            secret: names::BROKER_TLS.into(),
            trust: Trust::ConfigMap(names::BROKER_CA.into()),
            // A kubelet may take two minutes to update a mounted ConfigMap.
            settle: Duration::from_secs(300),
            ..Self::new(namespace)
        }
    }

    /// Returns the certificate's DNS names and addresses.
    pub fn names(&self) -> Vec<String> {
        let service = format!("{}.{}.svc", self.service, self.namespace);
        let mut names = vec![format!("{service}.cluster.local"), service];
        names.extend(self.extra_names.iter().cloned());
        names
    }
}

/// The object that publishes the trusted authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The `caBundle` of all webhooks of the ValidatingWebhookConfiguration and the
    /// MutatingWebhookConfiguration of this name, for the API server.
    Webhook(String),
    /// The key `ca.crt` of this ConfigMap, for agents that mount it. Requires the Service to exist.
    ConfigMap(String),
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(name) => write!(f, "ValidatingWebhookConfiguration {name}"),
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
        }
    }
}

impl Trust {
    /// Returns the certificate's subject, for logs.
    fn subject(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "rolegate admission",
            Self::ConfigMap(_) => "rolegate broker",
        }
    }
}

/// Metrics of certificates. Cloning is cheap; clones share state.
#[derive(Debug, Clone, Default)]
pub struct CertificateMetrics {
    issued: Family<[(&'static str, &'static str); 1], Counter>,
}

impl CertificateMetrics {
    /// Registers `certificates_issued_total` by `reason`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "certificates_issued",
            "Serving certificates issued for the admission webhook and the broker",
            metrics.issued.clone(),
        );
        metrics
    }
}

/// The reason why a check failed.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error(
        "Secret {0} is not managed by rolegate (it lacks the label {MANAGED_BY}={MANAGER}): \
         delete it, or choose another source of the certificate"
    )]
    Foreign(String),
    #[error("cannot {what}: {}", chain(.source))]
    Kube {
        what: &'static str,
        source: Box<kube::Error>,
    },
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("no response from the API server within {CHECK_TIMEOUT:?}")]
    Slow,
}

impl CertificateError {
    fn kube(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kube {
            what,
            source: Box::new(source),
        }
    }
}

/// The leader task that maintains a certificate.
pub struct Certificates {
    options: SelfSigned,
    client: Client,
    clock: Clock,
    condition: Condition,
    metrics: CertificateMetrics,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl LeaderTask for Certificates {
    fn name(&self) -> &'static str {
        "certificates"
    }

    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(self.keep(leading))
    }
}

/// A new pair whose authority is being published.
struct Pending {
    issued: Issued,
    /// The resource version of the Secret that it replaces, if there was one.
    replaces: Option<String>,
    /// The time at which its authority was published.
    known: Option<Instant>,
}

impl Certificates {
    /// Creates the task; work starts with [`LeaderTask::run`]. `condition` fails until a check has
    /// succeeded since this replica leads, and carries a note while later ones fail. On other
    /// replicas it is healthy.
    ///
    /// Needs `get`, `list`, `watch` and `update` on the Secret, `create` of Secrets and `get` on the
    /// Service in the namespace, `get`, `list`, `watch` and `patch` on the ValidatingWebhookConfiguration.
    pub fn new(
        options: SelfSigned,
        client: Client,
        clock: Clock,
        condition: Condition,
        metrics: CertificateMetrics,
    ) -> Self {
        condition.ok();
        Self {
            options,
            client,
            clock,
            condition,
            metrics,
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    /// Returns the Service that serves the certificate. It owns the objects that this task creates.
    async fn service(&self) -> Result<Owner, CertificateError> {
        let services = Api::namespaced(self.client.clone(), &self.options.namespace);
        Owner::find::<Service>(&services, &self.options.service)
            .await
            .map_err(CertificateError::kube("read the Service"))
    }

    async fn keep(&self, leading: CancellationToken) {
        let client = || self.client.clone();
        let secrets =
            Api::<PartialObjectMeta<Secret>>::namespaced(client(), &self.options.namespace);
        let trust = match &self.options.trust {
            Trust::Webhook(name) => {
                let api = Api::<PartialObjectMeta<ValidatingWebhookConfiguration>>::all(client());
                changes(api, name).boxed()
            }
            Trust::ConfigMap(name) => {
                let namespace = &self.options.namespace;
                let api = Api::<PartialObjectMeta<ConfigMap>>::namespaced(client(), namespace);
                changes(api, name).boxed()
            }
        };
        let changes = stream::select(changes(secrets, &self.options.secret), trust);
        let mut changes = pin!(changes);
        let subject = self.options.trust.subject();
        let mut pending = None;
        let mut trouble: Option<String> = None;
        let mut succeeded = false;
        loop {
            let looked = tokio::select! {
                checked = timeout(CHECK_TIMEOUT, self.check(&mut pending)) => checked,
                () = leading.cancelled() => break,
            };
            let wait = match looked.unwrap_or(Err(CertificateError::Slow)) {
                Ok(wait) => {
                    succeeded = true;
                    if trouble.take().is_some() {
                        tracing::info!(
                            certificate = subject,
                            "maintaining the certificate works \
                         again"
                        );
                    }
                    self.condition.ok();
                    wait
                }
                Err(error) => {
                    let sentence = error.to_string();
                    if trouble.as_ref() != Some(&sentence) {
                        tracing::warn!(
                            certificate = subject,
                            reason = sentence,
                            "cannot maintain the certificate, retrying"
                        );
                    }
                    if succeeded {
                        self.condition.note(sentence.clone());
                    } else {
                        self.condition.fail(sentence.clone());
                    }
                    trouble = Some(sentence);
                    RETRY_INTERVAL
                }
            };
            let next = async {
                tokio::time::sleep(MIN_CHECK_INTERVAL.min(wait)).await;
                tokio::select! {
                    () = tokio::time::sleep(wait.saturating_sub(MIN_CHECK_INTERVAL)) => {}
                    Some(()) = changes.next() => {}
                }
            };
            tokio::select! {
                () = next => {}
                () = leading.cancelled() => break,
            }
        }
        self.condition.ok();
    }

    /// Checks everything and takes the next step. Returns the time until the next check.
    async fn check(&self, pending: &mut Option<Pending>) -> Result<Duration, CertificateError> {
        let owner = match (self.service().await?, &self.options.trust) {
            (Owner::Found(service), _) => Some(service),
            // The permission may be missing in rights that were written for an earlier version.
            (Owner::Forbidden, Trust::Webhook(_)) => None,
            // Nothing serves a certificate, and one that is issued while everything is uninstalled
            // would stay. The permission for brokers is installed together with them.
            (Owner::Absent, _) | (Owner::Forbidden, Trust::ConfigMap(_)) => {
                *pending = None;
                return Ok(RETRY_INTERVAL);
            }
        };
        let owner = owner.as_ref();
        let secret = self
            .secrets()
            .get_opt(&self.options.secret)
            .await
            .map_err(CertificateError::kube("read the Secret"))?;
        let now = self.clock.now();
        let found = self.read(secret.as_ref())?;
        let why = match plan(now, &found, &self.options.names()) {
            Action::Keep { until } => {
                *pending = None;
                if let Found::Works(current) = &found {
                    self.publish(&current.authorities, owner).await?;
                }
                let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
                return Ok(left.clamp(MIN_CHECK_INTERVAL, POLL_INTERVAL));
            }
            Action::Issue(why) => why,
        };
        let replaces = secret
            .as_ref()
            .and_then(|secret| secret.metadata.resource_version.clone());
        // A pair that would replace another version of the Secret is discarded.
        let mut next = match pending.take() {
            Some(pending) if pending.replaces == replaces => pending,
            _ => Pending {
                issued: {
                    let subject = self.options.trust.subject();
                    issue(now, self.options.lifetime, subject, &self.options.names())?
                },
                replaces,
                known: None,
            },
        };
        let before = match &found {
            Found::Works(current) => current.authorities.clone(),
            Found::Nothing | Found::Broken(_) => Authorities::default(),
        };
        let authorities = before.with(&next.issued.authority, next.issued.not_after);
        let published = self.publish(&authorities, owner).await;
        let known = match (&published, next.known) {
            // There are no clients yet, so the authority need not be published first.
            (Ok(Published::Absent), _) => None,
            (Ok(Published::Already), Some(known)) => Some(known),
            (Ok(_), _) => Some(Instant::now()),
            // Nothing works yet, so the webhook's replicas can start at once.
            (Err(_), _) if why.is_urgent() => None,
            (Err(_), _) => {
                next.known = None;
                *pending = Some(next);
                return published.map(|_| RETRY_INTERVAL);
            }
        };
        if let Some(known) = known
            && !why.is_urgent()
        {
            next.known = Some(known);
            let left = self.options.settle.saturating_sub(known.elapsed());
            if !left.is_zero() {
                *pending = Some(next);
                return Ok(left.min(POLL_INTERVAL));
            }
        }
        let written = self
            .write(secret, &next.issued, &authorities, owner, &why)
            .await;
        if written.is_err() {
            // Kept for the next attempt, unless the Secret has changed by then.
            *pending = Some(next);
        }
        written.and(published).map(|_| MIN_CHECK_INTERVAL)
    }

    fn read(&self, secret: Option<&Secret>) -> Result<Found, CertificateError> {
        let Some(secret) = secret else {
            return Ok(Found::Nothing);
        };
        let empty = ByteString(Vec::new());
        let value = |key: &str| {
            let data = secret.data.as_ref();
            let value = data.and_then(|data| data.get(key)).unwrap_or(&empty);
            value.0.as_slice()
        };
        let found = Found::read(
            value(TLS_CRT),
            value(TLS_KEY),
            value(CA_CRT),
            self.clock.now(),
        );
        let labels = secret.metadata.labels.as_ref();
        let ours = labels
            .and_then(|labels| labels.get(MANAGED_BY))
            .map(String::as_str);
        if found != Found::Nothing && ours != Some(MANAGER) {
            let SelfSigned {
                namespace, secret, ..
            } = &self.options;
            return Err(CertificateError::Foreign(format!("{namespace}/{secret}")));
        }
        Ok(found)
    }

    async fn publish(
        &self,
        authorities: &Authorities,
        owner: Option<&OwnerReference>,
    ) -> Result<Published, CertificateError> {
        let client = self.client.clone();
        let published = match &self.options.trust {
            Trust::Webhook(name) => to_webhooks(client, name, authorities)
                .await
                .map_err(CertificateError::kube("set the webhook's caBundle")),
            Trust::ConfigMap(name) => {
                let api = Api::namespaced(client, &self.options.namespace);
                to_config_map(&api, name, authorities, owner)
                    .await
                    .map_err(CertificateError::kube("write the ConfigMap of authorities"))
            }
        }?;
        if published == Published::Changed {
            tracing::info!(
                object = %self.options.trust,
                authorities = authorities.len(),
                "updated the CA bundle"
            );
        }
        Ok(published)
    }

    async fn write(
        &self,
        before: Option<Secret>,
        issued: &Issued,
        authorities: &Authorities,
        owner: Option<&OwnerReference>,
        why: &Why,
    ) -> Result<(), CertificateError> {
        let exists = before.is_some();
        let mut secret = before.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(self.options.secret.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(TLS_TYPE.into()),
            ..Secret::default()
        });
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        // An earlier Service of this name is no longer an owner.
        let owners = secret.metadata.owner_references.get_or_insert_default();
        owners.retain(|owner| owner.kind != "Service" || owner.name != self.options.service);
        owners.extend(owner.cloned());
        let data = secret.data.get_or_insert_default();
        let values = [
            (TLS_CRT, issued.certificate.as_bytes()),
            (TLS_KEY, issued.key.as_bytes()),
            (CA_CRT, authorities.to_pem().as_bytes()),
        ]
        .map(|(key, value)| (key, value.to_vec()));
        for (key, value) in values {
            if let Some(mut old) = data.insert(key.into(), ByteString(value)) {
                old.0.zeroize();
            }
        }
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        let written = if exists {
            // Conditional on the version that was read.
            let name = &self.options.secret;
            self.secrets().replace(name, &params, &secret).await
        } else {
            self.secrets().create(&params, &secret).await
        };
        for value in secret.data.iter_mut().flat_map(|data| data.values_mut()) {
            value.0.zeroize();
        }
        written.map_err(CertificateError::kube("write the Secret"))?;
        let reason = why.reason();
        self.metrics
            .issued
            .get_or_create(&[("reason", reason)])
            .inc();
        tracing::info!(reason, until = %issued.not_after, "issued a new certificate");
        Ok(())
    }
}

/// Yields whenever the object `name` changes. Errors are retried silently, since the caller checks
/// periodically anyway.
/// Sets the authorities of the webhook configurations of this name.
async fn to_webhooks(
    client: Client,
    name: &str,
    authorities: &Authorities,
) -> kube::Result<Published> {
    let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let validating = to_webhook(&validating, name, authorities).await?;
    let mutating = Api::<MutatingWebhookConfiguration>::all(client);
    let mutating = match to_webhook(&mutating, name, authorities).await {
        // The permission may be missing in rights that were written for an earlier version.
        Err(kube::Error::Api(status)) if status.code == 403 => Published::Absent,
        published => published?,
    };
    Ok(validating.and(mutating))
}

fn changes<K>(api: Api<PartialObjectMeta<K>>, name: &str) -> impl Stream<Item = ()> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(150);
    watcher(api, config)
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
            Ok(_) => Some(()),
            Err(error) => {
                tracing::debug!(error = chain(&error), "cannot watch for changes");
                None
            }
        })
}
