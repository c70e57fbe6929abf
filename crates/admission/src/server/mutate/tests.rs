use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::layer::Mode;
use rolegate_core::rule_set_builder::{AwsEnvironment, RuleUpdate};
use rolegate_core::service_account::{ServiceAccount, ServiceAccountAnnotations};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_review::mutation::InjectionSettings;
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::readiness::{Block, Readiness};
use rolegate_runtime::serve::{self, listen};
use rolegate_runtime::test_util::Exposition;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::injection::InjectionInputs;
use crate::injection::accounts::Accounts;
use crate::metrics::AdmissionMetrics;
use crate::metrics::compatible::CompatibleMetrics;
use crate::metrics::injection::InjectionMetrics;
use crate::server::{Mutating, Webhook};

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

struct Fixture {
    address: SocketAddr,
    registry: Registry,
    block: Option<Block>,
    _writer: RuleStoreWriter,
}

impl Fixture {
    /// Starts a mutating webhook alone, without TLS, that knows service account `api`.
    fn start() -> Self {
        let mut writer = RuleStoreWriter::new(
            RuleConfig::default(),
            EnforcementPoint::Admission,
            SessionScope::Workload,
            900,
        );
        writer.set_aws_environment(AwsEnvironment::default());
        let namespaces = RuleUpdate::Namespaces(Change::Snapshot(Vec::new()));
        writer.apply(Report::Rules(namespaces));
        let accounts = Accounts::default();
        accounts.apply(Change::Snapshot(vec![ServiceAccount {
            namespace: "shop".into(),
            name: "api".into(),
            uid: "u".into(),
            annotations: ServiceAccountAnnotations {
                web_identity_role: Some(ROLE.into()),
                ..ServiceAccountAnnotations::default()
            },
        }]));
        let mut registry = Registry::default();
        let compatible = CompatibleMetrics::register(&mut registry);
        let metrics = InjectionMetrics::register(&mut registry, Some(compatible));
        let injection = Injection::new(InjectionInputs {
            settings: InjectionSettings::default(),
            wait: Duration::from_millis(1),
            rules: writer.rules(),
            accounts,
            config_map: watch::channel(Some(Arc::default())).1,
            identities: watch::channel(Some(Arc::default())).1,
            metrics: metrics.clone(),
            reporter: Arc::new(|_| {}),
        });
        let readiness = Readiness::new();
        let block = readiness.block("not yet");
        let mutating = Mutating {
            injection,
            metrics,
            readiness,
            require: Mode::Off,
            is_alone: true,
        };
        let webhook = Webhook::new(
            writer.rules(),
            AnnotationKeys::default(),
            Clock::system(),
            AdmissionMetrics::register(&mut Registry::default()),
            Some(mutating),
        );
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve::serve_evictable(
            listener,
            webhook.limits(),
            Drain::new(),
            move |peer, _| Some(webhook.clone().connect(peer)),
        ));
        Self {
            address,
            registry,
            block: Some(block),
            _writer: writer,
        }
    }

    /// Returns the status and the body of the response.
    async fn send(&self, path: &str, kind: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    async fn review(&self, review: &Value) -> Value {
        let review = review.to_string();
        let (status, body) = self.send(MUTATE_PATH, "application/json", &review).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

fn review(version: &str, object: Value) -> Value {
    json!({
        "apiVersion": version, "kind": "AdmissionReview",
        "request": {"uid": "u-1", "operation": "CREATE", "name": "app", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": object,
            "userInfo": {"username": "jane"}},
    })
}

fn pod() -> Value {
    json!({"metadata": {"name": "app"}, "spec": {"serviceAccountName": "api",
        "containers": [{"name": "main"}]}})
}

#[tokio::test]
async fn both_versions_are_echoed() {
    let fixture = Fixture::start();
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let answer = fixture.review(&review(version, pod())).await;
        assert_eq!(answer["apiVersion"], version);
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = &answer["response"];
        assert_eq!(response["uid"], "u-1");
        assert_eq!(response["patchType"], "JSONPatch");
        assert!(response["patch"].is_string());
    }
    let metrics = Exposition::encode(&fixture.registry);
    for line in [
        r#"http_request_count{verb="POST",path="/mutate",code="200"} 2"#,
        r#"pod_identity_webhook_pod_count{method="sts_web_identity"} 2"#,
        r#"injection_duration_seconds_count{outcome="changed"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[tokio::test]
async fn other_content_types_are_refused_with_the_eks_webhooks_text() {
    let fixture = Fixture::start();
    for kind in [
        "text/plain",
        "application/json; charset=utf-8",
        "application/jsonx",
    ] {
        let (status, body) = fixture.send(MUTATE_PATH, kind, "{}").await;
        assert_eq!(status, 415, "{kind}");
        assert!(body.starts_with("Invalid Content-Type, expected"), "{body}");
    }
}

#[tokio::test]
async fn a_pod_that_cannot_be_read_is_denied() {
    let fixture = Fixture::start();
    for broken in [
        json!([]),
        json!({"spec": {"containers": {}}}),
        json!({"spec": 1}),
    ] {
        let mut object = pod();
        object["spec"]["containers"] = json!([{"name": 1}]);
        for object in [object, broken.clone()] {
            let answer = fixture
                .review(&review("admission.k8s.io/v1beta1", object))
                .await;
            let response = &answer["response"];
            if broken == json!({"spec": {"containers": {}}}) && response["allowed"] == true {
                // Its service account is `default`, which is unknown and gets no role.
                continue;
            }
            assert_eq!(response["allowed"], false, "{answer}");
            assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
        }
    }
    let (status, _) = fixture.send(MUTATE_PATH, "application/json", "{").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn other_requests_are_allowed_unchanged() {
    let fixture = Fixture::start();
    let mut update = review("admission.k8s.io/v1", pod());
    update["request"]["operation"] = "UPDATE".into();
    let mut other = review("admission.k8s.io/v1", pod());
    other["request"]["kind"]["kind"] = "PodTemplate".into();
    let mut skipped = pod();
    skipped["metadata"]["labels"] = json!({"eks.amazonaws.com/skip-pod-identity-webhook": "x"});
    for review in [update, other, review("admission.k8s.io/v1", skipped)] {
        let answer = fixture.review(&review).await;
        assert_eq!(answer["response"], json!({"uid": "u-1", "allowed": true}));
    }
}

#[tokio::test]
async fn health_is_ok_only_when_ready() {
    let mut fixture = Fixture::start();
    let (status, _) = fixture.send("/healthz", "text/plain", "").await;
    assert_eq!(status, 503);
    drop(fixture.block.take());
    let (status, body) = fixture.send("/healthz", "text/plain", "").await;
    assert_eq!((status, &*body), (200, "ok"));
    let (status, _) = fixture.send("/validate", "application/json", "{}").await;
    assert_eq!(status, 404);
}
