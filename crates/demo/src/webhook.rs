//! The demo's admission webhook, registered with the Kubernetes stand-in, and the output that a
//! developer sees.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, ensure};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rolegate_admission::app::{Admission, AdmissionOptions, RuleSource};
use rolegate_admission::server::PATH;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;
use serde_json::Value;
use tempfile::TempDir;

use super::processes::{ANY_PORT, DRAIN, READY};

/// The path of webhook configurations.
pub(super) const WEBHOOKS: &str = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// A running webhook.
#[derive(Debug)]
pub(super) struct Webhook {
    admission: Admission,
    /// The directory of its certificate.
    _folder: TempDir,
}

impl Webhook {
    /// Starts the webhook for the API server at `kube`, and returns it with its configuration.
    ///
    /// # Errors
    /// Returns an error if it does not start or become ready.
    pub(super) async fn open(kube: String) -> anyhow::Result<(Self, Value)> {
        let folder = tempfile::tempdir().context("cannot create a directory for a certificate")?;
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let files = TlsFiles {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
        };
        let bundle = made.cert.pem();
        tokio::fs::write(&files.certificate, &bundle).await?;
        tokio::fs::write(&files.key, made.signing_key.serialize_pem()).await?;
        let admission = Admission::start(AdmissionOptions {
            listen: ANY_PORT,
            admin_listen: ANY_PORT,
            client: ClientOptions {
                api_server: Some(kube),
                ..ClientOptions::default()
            },
            annotations: AnnotationKeys::default(),
            rules: RuleConfig::default(),
            given: GivenRuleFlags::default(),
            cluster_config: ConfigMode::Required,
            certificate: CertificateSource::Files(files),
            secret: (String::new(), String::new()),
            clock: Clock::system(),
            rule_source: RuleSource::Cluster,
            injection: None,
        })
        .await?;
        tokio::time::timeout(READY, admission.readiness().ready())
            .await
            .with_context(|| admission.readiness().report().to_text(false))?;
        let address = admission.addresses().webhook;
        ensure!(
            address.ip() == Ipv4Addr::LOCALHOST,
            "the webhook does not listen on loopback"
        );
        let url = format!("https://{address}{PATH}");
        let config = RuleConfig {
            modes: Modes::default().with(LayerId::Grants, Mode::Enforce),
            ..RuleConfig::default()
        };
        let registration = webhook_configuration(&Registration {
            config: &config,
            keys: &AnnotationKeys::default(),
            has_default_role: false,
            has_rego: false,
            endpoint: Endpoint::Url(&url),
            ca_bundle: bundle.as_bytes(),
            own_namespace: "rolegate",
            requires_injection: Mode::Off,
        });
        let webhook = Self {
            admission,
            _folder: folder,
        };
        Ok((webhook, registration))
    }

    /// Stops the webhook.
    pub(super) async fn close(self) {
        self.admission.stop(DRAIN).await;
    }
}

/// Returns the output of `kubectl create -f -`, and whether the object was created.
pub(super) async fn create(kube: SocketAddr, object: Value) -> anyhow::Result<(bool, String)> {
    let stream = tokio::net::TcpStream::connect(kube).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let namespace = object
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    let path = format!(
        "/apis/apps/v1/namespaces/{}/deployments",
        namespace.unwrap_or_default()
    );
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(object.to_string())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let created = response.status().is_success();
        let body = response.into_body().collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body)?;
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap_or("?");
        let said = if created {
            format!("deployment.apps/{} created", text("/metadata/name"))
        } else {
            format!(
                "Error from server ({}): {}",
                text("/reason"),
                text("/message")
            )
        };
        anyhow::Ok((created, said))
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => match ended {
            Ok(()) => anyhow::bail!("the API server closed the connection"),
            Err(error) => Err(error.into()),
        },
    }
}
