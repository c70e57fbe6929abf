//! Admission in front of a cluster: `rolegate admission` and `rolegate controller` as processes,
//! each with the permissions of the shipped manifests, and the exported webhook configuration,
//! whose webhooks are reached by URL for lack of a Service network.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cases::User;
use crate::request::Requests;
use crate::{Cluster, Rolegate, eventually, repository};

/// The namespace of the shipped manifest.
pub const HOME: &str = "rolegate-system";
/// The name of the webhook configuration.
pub const REGISTRATION: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/rolegate";
/// Deadline for waiting on other processes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The source of the webhook's certificate.
#[derive(Debug, Clone, Default)]
pub enum Certificate {
    /// The controller, which also sets the `caBundle`.
    #[default]
    Controller,
    /// cert-manager. The test writes the Secret and the `caBundle` in its place.
    CertManager,
    /// Files: chain and key.
    Files(PathBuf, PathBuf),
}

/// The processes. Dropping them kills them.
#[derive(Debug)]
pub struct TestAdmission {
    /// The webhook.
    pub admission: Rolegate,
    /// Maintains the certificate, the webhook configuration and the status of rules. `None` if the
    /// certificate has another source.
    pub controller: Option<Rolegate>,
    addresses: Addresses,
    certificate: Certificate,
    flags: Vec<String>,
    kubeconfig: PathBuf,
}

/// The bound addresses of the webhook.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    webhook: SocketAddr,
    admin: SocketAddr,
}

impl Cluster {
    /// Grants these groups all permissions, so that only admission denies their requests.
    /// `developers` must be among them.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn open_to(&self, groups: &[&str]) -> anyhow::Result<()> {
        let subject = |group| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group });
        let subjects: Vec<_> = groups.iter().map(subject).collect();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "everything" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": "cluster-admin" },
            "subjects": subjects,
        });
        self.apply_manifest(&binding.to_string()).await?;
        let developer = self.requests()?.as_user(&User::default());
        // Bindings take effect after a short delay.
        eventually(DEADLINE, async || {
            developer.get("/api/v1/pods").await?.object().map(drop)
        })
        .await
    }

    /// Applies the shipped custom resource definitions and the admission manifests. Returns a
    /// webhook configuration that is not applied.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn install_admission(&self) -> anyhow::Result<Value> {
        self.install_kinds().await?;
        self.install_admission_alone().await
    }

    /// Applies the shipped custom resource definitions and waits until they are served.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn install_kinds(&self) -> anyhow::Result<()> {
        self.apply_file(&repository().join("deploy/crds.yaml"))
            .await?;
        let admin = self.requests()?;
        for kind in ["rolegrants", "rolegateconfigs"] {
            let path = format!("/apis/rolegate.dev/v1alpha1/{kind}");
            eventually(DEADLINE, async || {
                admin.get(&path).await?.object().map(drop)
            })
            .await?;
        }
        Ok(())
    }

    /// Like [`Self::install_admission`], without the custom resource definitions.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn install_admission_alone(&self) -> anyhow::Result<Value> {
        // Our manifests do not create the namespace `opa`.
        self.apply_manifest("{apiVersion: v1, kind: Namespace, metadata: {name: opa}}")
            .await?;
        self.install(&["rolegate-admission", "rolegate-policies"])
            .await?;
        let rules = json!({
            "apiVersion": "rolegate.dev/v1alpha1", "kind": "RolegateConfig",
            "metadata": { "name": "cluster" },
            "spec": { "layers": { "grants": "enforce" }, "ruleWriters": {} },
        });
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, rules.to_string())?;
        let mut export = tokio::process::Command::from(Rolegate::command()?);
        export
            .args(["policy", "export", "--format=webhook", "--namespace", HOME])
            .arg("--rules")
            .arg(&path)
            // Only the cluster of this kubeconfig.
            .env_remove("KUBECONFIG")
            .env("HOME", dir.path())
            .kill_on_drop(true);
        let exported = tokio::time::timeout(DEADLINE, export.output()).await??;
        ensure!(
            exported.status.success(),
            "{}",
            String::from_utf8_lossy(&exported.stderr)
        );
        Ok(serde_saphyr::from_slice(&exported.stdout)?)
    }

    /// Applies shipped manifests of `deploy/`, by their names without extension, after the
    /// namespace that they are in.
    ///
    /// # Errors
    /// Returns an error if the API server refuses one.
    pub async fn install(&self, manifests: &[&str]) -> anyhow::Result<()> {
        for manifest in ["namespace"].iter().chain(manifests) {
            let path = repository().join(format!("deploy/{manifest}.yaml"));
            self.apply_file(&path).await?;
        }
        Ok(())
    }
}

impl TestAdmission {
    /// Installs admission, applies the rules (YAML), starts the processes, and waits until the API
    /// server calls the webhook.
    ///
    /// # Errors
    /// Returns an error with the end of the output if a step fails.
    pub async fn start(cluster: &Cluster, rules: &str) -> anyhow::Result<Self> {
        let mut registration = cluster.install_admission().await?;
        // Not to service accounts: admission has only the permissions of its manifest.
        cluster.open_to(&["developers", "platform"]).await?;
        cluster.apply_manifest(rules).await?;
        let mut stack = Self::bare(cluster, Certificate::Controller).await?;
        stack.start_controller(cluster, "localhost").await?;
        stack.register(cluster, &mut registration, None).await?;
        stack.ready().await?;
        stack.until_called(cluster).await?;
        Ok(stack)
    }

    /// Starts the webhook alone, in a cluster where admission is installed. It may not be ready
    /// yet.
    ///
    /// # Errors
    /// Returns an error if it does not start.
    pub async fn bare(cluster: &Cluster, certificate: Certificate) -> anyhow::Result<Self> {
        Self::with_flags(cluster, certificate, &[]).await
    }

    /// Like [`Self::bare`], with additional flags.
    ///
    /// # Errors
    /// Returns an error if it does not start.
    pub async fn with_flags(
        cluster: &Cluster,
        certificate: Certificate,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let token = cluster
            .service_account_token(HOME, "rolegate-admission")
            .await?;
        let kubeconfig = cluster.kubeconfig_for_token("admission", &token)?;
        let anywhere = Addresses {
            webhook: "127.0.0.1:0".parse()?,
            admin: "127.0.0.1:0".parse()?,
        };
        let mut admission = spawn(anywhere, &certificate, &flags, &kubeconfig)?;
        let line = admission.wait_for_line("webhook=", DEADLINE).await?;
        Ok(Self {
            addresses: Addresses {
                webhook: address(&line, "webhook=")?,
                admin: address(&line, "admin=")?,
            },
            admission,
            controller: None,
            certificate,
            flags,
            kubeconfig,
        })
    }

    /// Returns the URL of the webhook.
    pub fn url(&self) -> String {
        format!("https://{}/validate", self.addresses.webhook)
    }

    /// Starts the controller. The certificate is also valid for this name.
    async fn start_controller(&mut self, cluster: &Cluster, name: &str) -> anyhow::Result<()> {
        let token = cluster
            .service_account_token(HOME, "rolegate-controller")
            .await?;
        let kubeconfig = cluster.kubeconfig_for_token("controller", &token)?;
        let source = match self.certificate {
            Certificate::CertManager => "--certificate=cert-manager",
            Certificate::Controller | Certificate::Files(..) => "--certificate=controller",
        };
        let flags = [
            "controller",
            source,
            &format!("--namespace={HOME}"),
            &format!("--tls-extra-names=127.0.0.1,{name}"),
            "--metrics-address=127.0.0.1:0",
        ];
        let environment = [("ROLEGATE_KUBECONFIG", kubeconfig)];
        self.controller = Some(Rolegate::spawn(&flags, environment)?);
        Ok(())
    }

    /// Restarts the controller for a certificate with another name.
    ///
    /// # Errors
    /// Returns an error if it does not stop or start.
    pub async fn restart_controller(
        &mut self,
        cluster: &Cluster,
        name: &str,
    ) -> anyhow::Result<()> {
        if let Some(mut before) = self.controller.take() {
            before.stop().await?;
        }
        self.start_controller(cluster, name).await
    }

    /// Returns the controller's log so far.
    pub fn controller_log(&self) -> String {
        self.controller
            .as_ref()
            .map(|controller| controller.log())
            .unwrap_or_default()
    }

    /// Applies a webhook configuration with the URL of this webhook, and with a CA bundle unless
    /// the controller fills it in.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn register(
        &self,
        cluster: &Cluster,
        registration: &mut Value,
        authority: Option<&str>,
    ) -> anyhow::Result<()> {
        let webhooks = registration
            .get_mut("webhooks")
            .and_then(Value::as_array_mut);
        for webhook in webhooks.context("a registration without webhooks")? {
            let mut client = Map::from_iter([("url".to_owned(), self.url().into())]);
            if let Some(authority) = authority {
                client.insert("caBundle".into(), authority.into());
            }
            let webhook = webhook.as_object_mut();
            let webhook = webhook.context("a webhook is not an object")?;
            webhook.insert("clientConfig".into(), client.into());
        }
        cluster.apply_manifest(&registration.to_string()).await?;
        Ok(())
    }

    /// Waits until the webhook is ready.
    ///
    /// # Errors
    /// Returns an error with the missing items and the end of the output if it does not become
    /// ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let admin = self.addresses.admin;
        self.admission
            .until(DEADLINE, async || {
                let answer = get(admin, "/readyz").await?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                Ok(())
            })
            .await
    }

    /// Returns the webhook's metrics.
    ///
    /// # Errors
    /// Returns an error if the port does not respond.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        get(self.addresses.admin, "/metrics").await
    }

    /// Returns the controller's metrics.
    ///
    /// # Errors
    /// Returns an error if the controller does not run or the port does not respond.
    pub async fn controller_metrics(&mut self) -> anyhow::Result<String> {
        let controller = self.controller.as_mut().context("no controller")?;
        let line = controller.wait_for_line("admin=", DEADLINE).await?;
        get(address(&line, "admin=")?, "/metrics").await
    }

    /// Waits until the API server calls the webhook: a binding that gives a role is denied with any
    /// rules, or causes a warning while no layer is enforced.
    ///
    /// # Errors
    /// Returns an error if it does not.
    pub async fn until_called(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let developer = cluster.requests()?.as_user(&User::default());
        self.admission
            .until(DEADLINE, async || is_called(&developer).await)
            .await
    }

    /// Returns the response of the webhook's admin port to `GET path`, including the head.
    ///
    /// # Errors
    /// Returns an error if it does not respond.
    pub async fn operators(&self, path: &str) -> anyhow::Result<String> {
        get(self.addresses.admin, path).await
    }

    /// Kills the webhook.
    pub fn kill_admission(&mut self) {
        self.admission.kill();
    }

    /// Restarts the webhook at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if it does not start or become ready.
    pub async fn restart_admission(&mut self) -> anyhow::Result<()> {
        self.admission.kill();
        self.admission = spawn(
            self.addresses,
            &self.certificate,
            &self.flags,
            &self.kubeconfig,
        )?;
        self.ready().await
    }
}

/// Returns the address after `name` in a line of a log.
fn address(line: &str, name: &str) -> anyhow::Result<SocketAddr> {
    let mut words = line.split_whitespace();
    let address = words.find_map(|word| word.strip_prefix(name));
    Ok(address.with_context(|| line.to_owned())?.parse()?)
}

/// Sends an HTTP GET and reads to the end of the connection. Metrics are in the text format.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let headers = "Host: a\r\nAccept: text/plain\r\nConnection: close";
    let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn is_called(developer: &Requests) -> anyhow::Result<()> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": "probe", "annotations": { "iam.amazonaws.com/role": "probe" } },
        "target": { "kind": "Node", "name": "none" },
    });
    let path = "/api/v1/namespaces/default/pods/probe/binding?dryRun=All";
    let answer = developer.post(path, &binding).await?;
    let warned = |text: &String| text.contains("rolegate would deny");
    ensure!(
        answer.is_refused_by_webhook() || answer.warnings.iter().any(warned),
        "the API server does not ask the webhook yet: {} {}",
        answer.status,
        answer.message()
    );
    Ok(())
}

fn spawn(
    addresses: Addresses,
    certificate: &Certificate,
    more: &[String],
    kubeconfig: &std::path::Path,
) -> anyhow::Result<Rolegate> {
    let mut flags = vec![
        "admission".to_owned(),
        format!("--namespace={HOME}"),
        format!("--listen-address={}", addresses.webhook),
        format!("--metrics-address={}", addresses.admin),
    ];
    match certificate {
        Certificate::Controller => {}
        Certificate::CertManager => flags.push("--certificate=cert-manager".into()),
        Certificate::Files(chain, key) => {
            flags.push("--certificate=files".into());
            flags.push(format!("--tls-cert={}", chain.display()));
            flags.push(format!("--tls-key={}", key.display()));
        }
    }
    let flags: Vec<_> = flags.iter().chain(more).map(String::as_str).collect();
    Rolegate::spawn(&flags, [("ROLEGATE_KUBECONFIG", kubeconfig)])
}
