//! An API server whose MutatingWebhookConfiguration leads to a webhook under test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::Mode;
use rolegate_review::mutating_configuration::{
    FailurePolicy, MutatingRegistration, mutating_configuration,
};
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};
use rolegate_testkit::admission::{Certificate, HOME};
use rolegate_testkit::request::{Answer, Requests};
use rolegate_testkit::{Cluster, Rolegate, TestAdmission, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(super) const DEADLINE: Duration = Duration::from_secs(120);
pub(super) const ROLE: &str = "arn:aws:iam::123456789012:role/reader";
pub(super) const REGION: &str = "eu-west-1";
pub(super) const MUTATING: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/rolegate";
const RULES: &str = "{apiVersion: rolegate.dev/v1alpha1, kind: RolegateConfig, \
    metadata: {name: cluster}, spec: {layers: {namespace: \"off\", grants: \"off\", rego: \"off\"}}}";

/// The rights of EKS's webhook and of kOps, and no others.
const NARROW_RIGHTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: eks}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: pod-identity-webhook, namespace: eks}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pod-identity-webhook}
rules:
- {apiGroups: [""], resources: [serviceaccounts], verbs: [get, watch, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pod-identity-webhook}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pod-identity-webhook}
subjects: [{kind: ServiceAccount, name: pod-identity-webhook, namespace: eks}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pod-identity-webhook, namespace: eks}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [get, watch, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pod-identity-webhook, namespace: eks}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pod-identity-webhook}
subjects: [{kind: ServiceAccount, name: pod-identity-webhook, namespace: eks}]
"#;

/// The address that the API server calls: a port that is forwarded to one replica of the webhook,
/// as a Service does.
pub(super) struct Service {
    pub(super) port: u16,
    target: Arc<Mutex<String>>,
    forwarding: JoinHandle<()>,
}

impl Service {
    async fn start(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let target = Arc::new(Mutex::new(target));
        let current = target.clone();
        let forwarding = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let address = current.lock().clone();
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(address).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Ok(Self {
            port,
            target,
            forwarding,
        })
    }

    pub(super) fn lead_to(&self, url: &str) {
        *self.target.lock() = authority(url);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.forwarding.abort();
    }
}

/// Returns `HOST:PORT` of a URL.
fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

pub(super) struct Fixture {
    pub(super) cluster: Cluster,
    pub(super) driver: Requests,
    pub(super) service: Service,
    pub(super) webhook: Option<TestAdmission>,
    pub(super) certificate: Certificate,
    compatible: Option<(Rolegate, String)>,
    registration: Option<Value>,
}

impl Fixture {
    /// Starts `rolegate admission --inject` with more flags, in front of nothing yet.
    pub(super) async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let mut fixture = Self::installed().await?;
        let webhook = fixture.replica(flags).await?;
        fixture.service.lead_to(&webhook.url());
        fixture.webhook = Some(webhook);
        Ok(fixture)
    }

    /// Starts an API server with the shipped manifests and rules that allow all roles, and no webhook.
    pub(super) async fn installed() -> anyhow::Result<Self> {
        let fixture = Self::bare().await?;
        fixture.cluster.install_admission().await?;
        fixture.cluster.install(&["rolegate-injection"]).await?;
        fixture.cluster.apply_manifest(RULES).await?;
        Ok(fixture)
    }

    /// Starts an API server with namespace `shop`, and no webhook.
    pub(super) async fn bare() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let (chain, key) = cluster.serving_pair("webhook", &["127.0.0.1"])?;
        cluster
            .apply_manifest("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
            .await?;
        Ok(Self {
            driver: cluster.requests()?,
            cluster,
            service: Service::start(String::new()).await?,
            webhook: None,
            certificate: Certificate::Files(chain, key),
            compatible: None,
            registration: None,
        })
    }

    /// Starts a replica, and waits until it is ready.
    pub(super) async fn replica(&self, flags: &[&str]) -> anyhow::Result<TestAdmission> {
        let region = format!("--inject-region={REGION}");
        let flags = [&["--inject", &*region], flags].concat();
        let certificate = self.certificate.clone();
        let mut replica = TestAdmission::with_flags(&self.cluster, certificate, &flags).await?;
        replica.ready().await?;
        Ok(replica)
    }

    /// Starts `rolegate pod-identity-webhook` with kOps's command line and narrow rights, registered
    /// for `v1beta1`.
    pub(super) async fn compatible() -> anyhow::Result<Self> {
        let mut fixture = Self::bare().await?;
        for document in NARROW_RIGHTS.split("---\n") {
            fixture.cluster.apply_manifest(document).await?;
        }
        let token = fixture
            .cluster
            .service_account_token("eks", "pod-identity-webhook")
            .await?;
        let kubeconfig = fixture.cluster.kubeconfig_for_token("eks", &token)?;
        let Certificate::Files(chain, key) = &fixture.certificate else {
            anyhow::bail!("no files")
        };
        // The manifests start `/webhook`.
        let dir = tempfile::tempdir()?;
        let program = dir.path().join("webhook");
        std::os::unix::fs::symlink(Rolegate::path()?, &program)?;
        let mut command = Command::new(&program);
        // Variables for the tests, such as ROLEGATE_BINARY, are not for the program.
        command.env_clear();
        command.args([
            "--in-cluster=false",
            "--namespace=eks",
            "--service-name=pod-identity-webhook",
            "--annotation-prefix=eks.amazonaws.com",
            "--token-audience=amazonaws.com",
            "--logtostderr",
            "--watch-config-map",
            "--sts-regional-endpoint",
            "--aws-default-region=eu-west-1",
            "--v=5",
            "--port=0",
            "--metrics-port=0",
        ]);
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        command.arg(format!("--tls-cert={}", chain.display()));
        command.arg(format!("--tls-key={}", key.display()));
        let mut process = Rolegate::spawn_command(&command)?;
        let line = process.wait_for_line("webhook=", DEADLINE).await?;
        let port = |name: &str| {
            let mut words = line.split_whitespace();
            let address = words.find_map(|word| word.strip_prefix(name));
            let port = address.and_then(|address| address.rsplit(':').next());
            port.map(|port| format!("127.0.0.1:{port}"))
                .context(line.clone())
        };
        fixture.service.lead_to(&port("webhook=")?);
        fixture.compatible = Some((process, port("admin=")?));
        let mut registration = fixture.mutating();
        let webhooks = registration["webhooks"].as_array_mut().context("none")?;
        webhooks.truncate(1);
        for webhook in webhooks {
            webhook["name"] = "pod-identity-webhook.amazonaws.com".into();
            webhook["admissionReviewVersions"] = json!(["v1beta1"]);
            webhook["reinvocationPolicy"] = "Never".into();
            webhook["matchConditions"] = json!([]);
        }
        fixture
            .cluster
            .apply_manifest(&registration.to_string())
            .await?;
        drop(dir);
        Ok(fixture)
    }

    fn mutating(&self) -> Value {
        mutating_configuration(&MutatingRegistration {
            config: &RuleConfig::default(),
            endpoint: Endpoint::Url(&format!("https://127.0.0.1:{}/mutate", self.service.port)),
            ca_bundle: self.cluster.ca_pem().as_bytes(),
            own_namespace: HOME,
            on_failure: FailurePolicy::Fail,
        })
    }

    /// Registers the mutating webhook, changed by `change`. It takes effect with
    /// [`Self::until_called`].
    pub(super) fn register(&mut self, change: impl Fn(&mut Value)) {
        let mut registration = self.mutating();
        for webhook in registration["webhooks"].as_array_mut().unwrap() {
            change(webhook);
        }
        self.registration = Some(registration);
    }

    pub(super) async fn apply_registration(&self) -> anyhow::Result<()> {
        if let Some(registration) = &self.registration {
            self.driver.delete(MUTATING).await?;
            self.cluster
                .apply_manifest(&registration.to_string())
                .await?;
        }
        Ok(())
    }

    /// Waits until the API server calls the webhook for pods.
    pub(super) async fn until_called(&self) -> anyhow::Result<()> {
        self.apply_registration().await?;
        eventually(DEADLINE, async || {
            let answer = self.dry_run(&pod("probe", "api")).await?;
            let warned = answer.warnings.join(" ");
            let object = answer.object()?;
            let all = object["spec"]["containers"].as_array().context("none")?;
            let injected = all.iter().any(|container| role_of(container).is_some());
            ensure!(
                injected || warned.contains("rolegate"),
                "not called: {object}"
            );
            Ok(())
        })
        .await
    }

    /// Registers the validating webhook for these rules. It also requires injection.
    pub(super) async fn require_injection(&self, config: &RuleConfig) -> anyhow::Result<()> {
        let url = format!("https://127.0.0.1:{}/validate", self.service.port);
        let registration = webhook_configuration(&Registration {
            config,
            keys: &AnnotationKeys::default(),
            has_default_role: false,
            has_rego: false,
            endpoint: Endpoint::Url(&url),
            ca_bundle: self.cluster.ca_pem().as_bytes(),
            own_namespace: HOME,
            requires_injection: Mode::Enforce,
        });
        self.cluster
            .apply_manifest(&registration.to_string())
            .await?;
        Ok(())
    }

    /// Creates a service account.
    pub(super) async fn account(&self, name: &str, role: Option<&str>) -> anyhow::Result<()> {
        self.driver
            .post(
                "/api/v1/namespaces/shop/serviceaccounts",
                &account(name, role),
            )
            .await?
            .object()?;
        Ok(())
    }

    pub(super) async fn create(&self, pod: &Value) -> anyhow::Result<Answer> {
        self.driver.post("/api/v1/namespaces/shop/pods", pod).await
    }

    /// Creates a pod, and returns it as the API server stored it.
    pub(super) async fn created(&self, pod: &Value) -> anyhow::Result<Value> {
        self.create(pod).await?.object()
    }

    pub(super) async fn dry_run(&self, pod: &Value) -> anyhow::Result<Answer> {
        let path = "/api/v1/namespaces/shop/pods?dryRun=All";
        self.driver.post(path, pod).await
    }

    /// Returns the metrics of the compatible webhook.
    pub(super) async fn metrics(&self) -> anyhow::Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (_, address) = self.compatible.as_ref().context("not compatible")?;
        let mut stream = TcpStream::connect(address).await?;
        let request =
            "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

pub(super) fn account(name: &str, role: Option<&str>) -> Value {
    let mut account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    if let Some(role) = role {
        account["metadata"]["annotations"] = json!({"eks.amazonaws.com/role-arn": role});
    }
    account
}

pub(super) fn pod(name: &str, account: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "i"}]}})
}

pub(super) fn container(pod: &Value, index: usize) -> &Value {
    &pod["spec"]["containers"][index]
}

pub(super) fn variable<'a>(container: &'a Value, name: &str) -> &'a str {
    let env = container["env"].as_array();
    let found = env.and_then(|env| env.iter().find(|variable| variable["name"] == name));
    found
        .and_then(|found| found["value"].as_str())
        .unwrap_or_default()
}

pub(super) fn role_of(container: &Value) -> Option<&str> {
    Some(variable(container, "AWS_ROLE_ARN")).filter(|role| !role.is_empty())
}

/// Another webhook, which adds a container in front of others after ours was called, as Istio does.
pub(super) struct Sidecars {
    child: tokio::process::Child,
    _dir: TempDir,
}

/// An HTTPS server that answers every review with the same patch.
const SIDECARS: &str = r#"
import base64, http.server, json, ssl, sys
PATCH = [{"op": "add", "path": "/spec/containers/0", "value": {"name": "istio-proxy", "image": "i"}}]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        names = [c["name"] for c in review["request"]["object"]["spec"]["containers"]]
        response = {"uid": review["request"]["uid"], "allowed": True}
        if "istio-proxy" not in names:
            response["patchType"] = "JSONPatch"
            response["patch"] = base64.b64encode(json.dumps(PATCH).encode()).decode()
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
open(sys.argv[3], "w").write(str(server.server_address[1]))
server.serve_forever()
"#;

impl Sidecars {
    pub(super) async fn start(fixture: &mut Fixture) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let Certificate::Files(chain, key) = &fixture.certificate else {
            anyhow::bail!("no files")
        };
        let port: PathBuf = dir.path().join("port");
        let child = tokio::process::Command::new("python3")
            .args(["-c", SIDECARS])
            .args([chain, key, &port])
            .kill_on_drop(true)
            .spawn()?;
        let mut bound = String::new();
        eventually(DEADLINE, async || {
            let text = std::fs::read_to_string(&port)?;
            ensure!(!text.is_empty(), "no port yet");
            Ok(())
        })
        .await?;
        bound += &std::fs::read_to_string(&port)?;
        let mut registration = fixture.mutating();
        // Webhooks are called in the order of the names of their configurations.
        registration["metadata"]["name"] = "sidecars".into();
        let webhooks = registration["webhooks"].as_array_mut().context("none")?;
        webhooks.truncate(1);
        for webhook in webhooks {
            webhook["name"] = "sidecars.example.com".into();
            webhook["clientConfig"]["url"] = format!("https://127.0.0.1:{bound}/").into();
            webhook["reinvocationPolicy"] = "Never".into();
        }
        fixture
            .cluster
            .apply_manifest(&registration.to_string())
            .await?;
        Ok(Self { child, _dir: dir })
    }
}

impl Drop for Sidecars {
    fn drop(&mut self) {
        // Killed on drop.
        let _ = self.child.start_kill();
    }
}
