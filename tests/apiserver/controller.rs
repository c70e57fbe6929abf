//! Two controllers at a real API server, each with only the rights that its documentation lists.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::Api;
use kube::api::DeleteParams;
use rolegate_controller::app::{Controller, ControllerOptions};
use rolegate_controller::certificates::{SelfSigned, Trust};
use rolegate_controller::lease::LeaseTiming;
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;
use rolegate_testkit::{Cluster, eventually};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A separate namespace with a service account that has the rights of a controller.
pub(crate) struct ControllerFixture {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: &'static str,
    pub(crate) client: ClientOptions,
}

impl ControllerFixture {
    pub(crate) async fn new(namespace: &'static str) -> Self {
        let cluster = Cluster::shared().await.unwrap();
        cluster.create_namespace(namespace, &[]).await.unwrap();
        cluster.apply_manifest(&rights(namespace)).await.unwrap();
        let token = cluster.service_account_token(namespace, "default").await;
        let kubeconfig = cluster.kubeconfig_for_token(namespace, &token.unwrap());
        Self {
            cluster,
            namespace,
            client: ClientOptions {
                kubeconfig: Some(kubeconfig.unwrap()),
                ..ClientOptions::default()
            },
        }
    }

    pub(crate) async fn connect(&self) -> kube::Client {
        Connection::new(&self.client).await.unwrap().client()
    }

    /// Returns an issuer of certificates with names of this namespace and short intervals.
    pub(crate) fn self_signed(&self) -> SelfSigned {
        SelfSigned {
            trust: Trust::Webhook(self.namespace.into()),
            extra_names: vec!["127.0.0.1".into()],
            settle: Duration::from_secs(3),
            ..SelfSigned::new(self.namespace)
        }
    }

    pub(crate) async fn controller(&self, identity: &str, self_signed: SelfSigned) -> Controller {
        let options = self.options(identity, self_signed);
        Controller::start(options).await.unwrap()
    }

    /// Returns an issuer of the brokers' certificate without that of a webhook.
    pub(crate) async fn controller_of_broker(
        &self,
        identity: &str,
        broker: SelfSigned,
    ) -> Controller {
        let options = ControllerOptions {
            certificates: CertificateSource::CertManager,
            broker: Some(broker),
            ..self.options(identity, self.self_signed())
        };
        Controller::start(options).await.unwrap()
    }

    pub(crate) fn options(&self, identity: &str, self_signed: SelfSigned) -> ControllerOptions {
        ControllerOptions {
            rules: None,
            startup_taint: None,
            client: self.client.clone(),
            namespace: self.namespace.into(),
            lease_name: "rolegate-controller".into(),
            identity: identity.into(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            lease: quick(),
            certificates: CertificateSource::SelfSigned,
            broker: None,
            self_signed,
            clock: Clock::system(),
        }
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.cluster.admin().unwrap(), self.namespace)
    }

    async fn holder(&self) -> anyhow::Result<String> {
        let leases = Api::<Lease>::namespaced(self.cluster.admin()?, self.namespace);
        let spec = leases.get("rolegate-controller").await?.spec;
        spec.and_then(|spec| spec.holder_identity)
            .context("no replica holds it")
    }

    async fn until_led_by(&self, identity: &str) {
        eventually(DEADLINE, async || {
            let holder = self.holder().await?;
            ensure!(holder == identity, "{holder:?} leads");
            Ok(())
        })
        .await
        .unwrap();
    }
}

pub(crate) fn quick() -> LeaseTiming {
    LeaseTiming {
        duration: Duration::from_secs(6),
        renew_deadline: Duration::from_secs(4),
        retry: Duration::from_millis(500),
    }
}

fn rights(namespace: &str) -> String {
    format!(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{ name: controller, namespace: {namespace} }}
rules:
- {{ apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create] }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [rolegate-controller]
  verbs: [get, update]
- {{ apiGroups: [""], resources: [secrets], verbs: [create] }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [rolegate-admission-tls]
  verbs: [get, list, watch, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{ name: controller, namespace: {namespace} }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: Role, name: controller }}
subjects: [{{ kind: ServiceAccount, name: default, namespace: {namespace} }}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{ name: {namespace} }}
rules:
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [{namespace}]
  verbs: [get, list, watch, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{ name: {namespace} }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace} }}
subjects: [{{ kind: ServiceAccount, name: default, namespace: {namespace} }}]
"#
    )
}

#[tokio::test]
async fn one_controller_leads_and_the_other_takes_over_when_it_stops_or_dies() {
    let fixture = ControllerFixture::new("two-controllers").await;
    let first = fixture.controller("first", fixture.self_signed()).await;
    fixture.until_led_by("first").await;
    let second = fixture.controller("second", fixture.self_signed()).await;
    for controller in [&first, &second] {
        let ready = controller.readiness().ready();
        let ready = tokio::time::timeout(DEADLINE, ready).await;
        ready.expect("both are ready, the leader and the other");
    }
    let metrics = |controller: &Controller| {
        let port = controller.addresses().admin;
        async move { get(port, "/metrics").await }
    };
    let leads = "rolegate_leader_election_status 1";
    assert!(metrics(&first).await.contains(leads));
    assert!(!metrics(&second).await.contains(leads));
    let made = "rolegate_certificates_issued_total{reason=\"missing\"} 1";
    eventually(DEADLINE, async || {
        ensure!(metrics(&first).await.contains(made), "not made yet");
        Ok(())
    })
    .await
    .unwrap();
    let certificate = fixture
        .secrets()
        .get("rolegate-admission-tls")
        .await
        .unwrap();

    first.stop(Duration::from_secs(30)).await;
    assert_ne!(fixture.holder().await.unwrap(), "first", "not released");
    fixture.until_led_by("second").await;
    // The new leader keeps the certificate that the first one created.
    let third = fixture.controller("third", fixture.self_signed()).await;
    let kept = fixture
        .secrets()
        .get("rolegate-admission-tls")
        .await
        .unwrap();
    assert_eq!(kept.data, certificate.data);

    // The leader stops without releasing the Lease, as when its node fails.
    drop(second);
    fixture.until_led_by("third").await;
    assert!(third.readiness().is_ready());
}

#[tokio::test]
async fn the_webhooks_service_owns_its_certificate() {
    let namespace = "certificate-owner";
    let fixture = ControllerFixture::new(namespace).await;
    let service = r#"
apiVersion: v1
kind: Service
metadata: { name: rolegate-admission, namespace: certificate-owner }
spec: { ports: [{ port: 443 }] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: services, namespace: certificate-owner }
rules: [{ apiGroups: [""], resources: [services], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: services, namespace: certificate-owner }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: services }
subjects: [{ kind: ServiceAccount, name: default, namespace: certificate-owner }]
"#;
    fixture.cluster.apply_manifest(service).await.unwrap();
    let self_signed = fixture.self_signed();
    let _controller = fixture.controller("owner", self_signed).await;
    let owners = eventually(DEADLINE, async || {
        let secret = fixture.secrets().get("rolegate-admission-tls").await?;
        secret.metadata.owner_references.context("no owner")
    })
    .await
    .unwrap();
    let owners: Vec<_> = owners.iter().map(|o| (&*o.kind, &*o.name)).collect();
    assert_eq!(owners, [("Service", "rolegate-admission")]);

    // While everything is uninstalled, the controller must not create the Secret again.
    let services = Api::<Service>::namespaced(fixture.cluster.admin().unwrap(), namespace);
    let now = DeleteParams::default();
    services.delete("rolegate-admission", &now).await.unwrap();
    fixture
        .secrets()
        .delete("rolegate-admission-tls", &now)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let secret = fixture.secrets().get_opt("rolegate-admission-tls").await;
    assert!(secret.unwrap().is_none());
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
