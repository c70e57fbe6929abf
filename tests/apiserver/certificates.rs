//! A real API server calls a webhook whose certificate the controller creates.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rolegate_controller::app::Controller;
use rolegate_controller::certificates::SelfSigned;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::serve::{Limits, listen, serve_tls};
use rolegate_runtime::shares::Eviction;
use rolegate_runtime::tls::{CertificateStore, ServerTls};
use rolegate_testkit::eventually;
use serde_json::{Value, json};

use super::controller::{ControllerFixture, DEADLINE};

const SECRET: &str = "rolegate-admission-tls";

/// A webhook that allows everything, and the configuration that registers it for ConfigMaps.
struct Webhook {
    fixture: ControllerFixture,
    calls: Arc<AtomicU64>,
    readiness: Readiness,
    _controller: Controller,
}

impl Webhook {
    async fn start(namespace: &'static str, shape: impl FnOnce(&mut SelfSigned)) -> Self {
        let fixture = ControllerFixture::new(namespace).await;
        let mut self_signed = fixture.self_signed();
        shape(&mut self_signed);
        let readiness = Readiness::new();
        let condition = readiness.condition("certificate");
        let store = CertificateStore::new("webhook", Clock::system(), condition);
        let store = Arc::new(store);
        let calls = Arc::new(AtomicU64::new(0));
        let address = answer(store.clone(), calls.clone());
        let (client, ready) = (fixture.connect().await, readiness.clone());
        tokio::spawn(async move {
            CertificateSource::SelfSigned
                .follow(client, namespace, SECRET, &store, &ready)
                .await;
        });
        let webhook = Self {
            _controller: fixture.controller("only", self_signed).await,
            fixture,
            calls,
            readiness,
        };
        let manifest = configuration(namespace, address);
        let applied = webhook.fixture.cluster.apply_manifest(&manifest);
        applied.await.unwrap();
        webhook
    }

    fn configurations(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.fixture.cluster.admin().unwrap())
    }

    /// Sends one request for which the API server calls the webhook.
    async fn ask(&self) -> anyhow::Result<()> {
        let maps =
            Api::<ConfigMap>::namespaced(self.fixture.cluster.admin()?, self.fixture.namespace);
        let map = serde_json::from_value(json!({"metadata": {"name": "any"}}))?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let before = self.calls.load(Relaxed);
        maps.create(&params, &map).await?;
        ensure!(
            self.calls.load(Relaxed) > before,
            "the webhook was not called"
        );
        Ok(())
    }

    async fn until_it_works(&self) {
        eventually(DEADLINE, async || self.ask().await)
            .await
            .unwrap();
    }

    /// Returns the Secret's value at `key`.
    async fn value(&self, key: &str) -> anyhow::Result<String> {
        let secret = self.fixture.secrets().get(SECRET).await?;
        let mut data = secret.data.context("an empty Secret")?;
        let value = data.remove(key).context("a key is missing")?;
        Ok(String::from_utf8(value.0)?)
    }

    async fn bundles(&self) -> BTreeSet<String> {
        let configuration = self.configurations().get(self.fixture.namespace).await;
        let webhooks = configuration.unwrap().webhooks.unwrap();
        let bundle = |webhook: k8s_openapi::api::admissionregistration::v1::ValidatingWebhook| {
            let bundle = webhook.client_config.ca_bundle.unwrap_or_default();
            String::from_utf8(bundle.0).unwrap()
        };
        webhooks.into_iter().map(bundle).collect()
    }
}

fn answer(store: Arc<CertificateStore>, calls: Arc<AtomicU64>) -> SocketAddr {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let tls = ServerTls::new(store).unwrap();
    let connect = move |_, _| {
        let calls = calls.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            calls.fetch_add(1, Relaxed);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let review: Value = serde_json::from_slice(&body).unwrap();
                let answer = json!({
                    "apiVersion": "admission.k8s.io/v1",
                    "kind": "AdmissionReview",
                    "response": {"uid": review["request"]["uid"], "allowed": true},
                });
                // Each request opens a new connection, so the API server verifies the certificate
                // each time.
                let answer = Response::builder()
                    .header("content-type", "application/json")
                    .header("connection", "close")
                    .body(Full::new(Bytes::from(answer.to_string())));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        Some((service, Eviction::never()))
    };
    let (limits, drain) = (Limits::default(), Drain::new());
    tokio::spawn(serve_tls(listener, limits, drain, tls, connect));
    address
}

fn configuration(namespace: &str, address: SocketAddr) -> String {
    let webhook = |name: &str, resource: &str| {
        json!({
            "name": name,
            "clientConfig": {"url": format!("https://{address}/")},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": [resource]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "timeoutSeconds": 10,
            "admissionReviewVersions": ["v1"],
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace},
        "webhooks": [webhook("a.rolegate.dev", "configmaps"), webhook("b.rolegate.dev", "pods")],
    })
    .to_string()
}

#[tokio::test]
async fn the_api_server_calls_a_webhook_with_the_certificate_that_the_controller_made() {
    let webhook = Webhook::start("certificate-made", |_| {}).await;
    webhook.until_it_works().await;
    assert!(webhook.readiness.is_ready());
    let secret = webhook.fixture.secrets().get(SECRET).await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    let keys: Vec<_> = secret.data.unwrap().into_keys().collect();
    assert_eq!(
        keys,
        ["ca.crt", "tls.crt", "tls.key"],
        "and no authority's key"
    );
    assert_eq!(
        webhook.bundles().await,
        BTreeSet::from([webhook.value("ca.crt").await.unwrap()])
    );

    // A user removes it, or replaces it with an invalid value: the controller restores it.
    let [taken, wrong] = [Value::Null, json!("bm9uc2Vuc2U=")].map(|bundle| {
        json!({"webhooks": [{"name": "a.rolegate.dev", "clientConfig": {"caBundle": bundle}}]})
    });
    for patch in [taken, wrong] {
        let before = webhook.bundles().await;
        let (name, patch) = (webhook.fixture.namespace, Patch::Strategic(patch));
        let configurations = webhook.configurations();
        // The API server may reject an invalid value itself.
        let _ = configurations
            .patch(name, &PatchParams::default(), &patch)
            .await;
        eventually(DEADLINE, async || {
            ensure!(webhook.bundles().await == before, "not put back yet");
            Ok(())
        })
        .await
        .unwrap();
        webhook.until_it_works().await;
    }

    // The Secret is lost: the controller creates a new one, and the webhook serves it.
    let before = webhook.value("tls.crt").await.unwrap();
    let secrets = webhook.fixture.secrets();
    secrets
        .delete(SECRET, &DeleteParams::default())
        .await
        .unwrap();
    eventually(DEADLINE, async || {
        ensure!(
            webhook.value("tls.crt").await? != before,
            "still the old one"
        );
        webhook.ask().await
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn rule_11_no_request_fails_while_certificates_and_authorities_are_renewed() {
    let webhook = Webhook::start("certificate-renewed", |options| {
        options.lifetime = Duration::from_secs(30);
    })
    .await;
    webhook.until_it_works().await;
    let mut seen = BTreeSet::from([webhook.value("tls.crt").await.unwrap()]);
    let mut most = 0;
    let mut asked = 0_u32;
    let renewals = async {
        while seen.len() < 3 {
            webhook.ask().await.unwrap();
            asked += 1;
            seen.insert(webhook.value("tls.crt").await.unwrap());
            let bundles = webhook.bundles().await;
            let trusted = |bundle: &String| bundle.matches("BEGIN CERTIFICATE").count();
            most = most.max(bundles.iter().map(trusted).max().unwrap());
        }
    };
    let renewed = tokio::time::timeout(DEADLINE, renewals).await;
    renewed.expect("it is not renewed");
    assert!(most >= 2, "old and new are never trusted together");
    assert!(asked > 20, "asked {asked} times only");
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone_and_told() {
    let fixture = ControllerFixture::new("certificate-foreign").await;
    let secret = json!({
        "metadata": {"name": SECRET},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": "theirs", "tls.key": "theirs"},
    });
    let secret = serde_json::from_value(secret).unwrap();
    let created = fixture
        .secrets()
        .create(&PostParams::default(), &secret)
        .await;
    let controller = fixture.controller("only", fixture.self_signed()).await;
    eventually(DEADLINE, async || {
        let report = controller.readiness().report();
        let why = report.failing.get("certificates").context("all is well")?;
        ensure!(
            why.contains("certificate-foreign/rolegate-admission-tls"),
            "{why}"
        );
        ensure!(why.contains("is not managed by rolegate"), "{why}");
        Ok(())
    })
    .await
    .unwrap();
    let after = fixture.secrets().get(SECRET).await.unwrap();
    assert_eq!(after.data, created.unwrap().data);
    controller.stop(Duration::from_secs(10)).await;
}
