//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and a DNS server in an environment's
//! network namespace.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use super::DEADLINE;
use super::environment::{CONTROL_PLANE_ADDRESS, Environment};
use super::user::Shell;
use crate::ca::{Authority, Pair};
use crate::cluster::flag;
use crate::kubeconfig::{Identity, kubeconfig};
use crate::process::Process;

/// The API server's port.
const API_PORT: u16 = 6443;
/// The address of the Service `kubernetes`.
const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The running control plane and its certificate authority.
pub(super) struct ControlPlane {
    processes: Vec<Process>,
    pub(super) authority: Authority,
    pub(super) binary: PathBuf,
    /// A kubeconfig with all permissions.
    pub(super) admin: PathBuf,
}

impl ControlPlane {
    /// Starts all components, and waits until the API server responds. `shell` runs kubectl in the
    /// environment.
    pub(super) async fn start(
        environment: &Environment,
        binary: PathBuf,
        shell: impl Fn(&Path) -> anyhow::Result<Shell>,
    ) -> anyhow::Result<Self> {
        let folder = environment.folder();
        let mut this = Self {
            processes: Vec::new(),
            authority: Authority::new(folder)?,
            binary,
            admin: PathBuf::new(),
        };
        this.admin = this.kubeconfig(folder, "admin", "admin", Some("system:masters"))?;
        let key = folder.join("service-accounts.key");
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        std::fs::write(&key, pair.serialize_pem())?;
        this.processes.push(this.etcd(environment)?);
        let mut apiserver = this.apiserver(environment, &key)?;
        let ready = ["kubectl", "get", "--raw", "/readyz"];
        apiserver
            .until(DEADLINE, async || {
                shell(&this.admin)?.exec(&ready).await?.ok()
            })
            .await?;
        let started = [
            apiserver,
            // Both exit early if they find no API server.
            this.controllers(environment, &key)?,
            this.scheduler(environment)?,
            this.names(environment)?,
        ];
        this.processes.extend(started);
        Ok(this)
    }

    /// Writes a kubeconfig with a certificate for this user into `folder`.
    pub(super) fn kubeconfig(
        &self,
        folder: &Path,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        let pair = self.authority.client(user, group)?;
        let path = folder.join(format!("{name}.kubeconfig"));
        let url = format!("https://{CONTROL_PLANE_ADDRESS}:{API_PORT}");
        let identity = Identity::Certificate(&pair);
        let content = kubeconfig(&url, self.authority.certificate(), &identity);
        std::fs::write(&path, content.to_string())?;
        Ok(path)
    }

    fn program(&self, environment: &Environment, name: &str) -> anyhow::Result<Command> {
        let mut command = environment
            .netns()?
            .command(&self.binary.display().to_string());
        command.arg(name);
        Ok(command)
    }

    fn etcd(&self, environment: &Environment) -> anyhow::Result<Process> {
        let mut command = self.program(environment, "etcd")?;
        command
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .arg(flag("data-dir", environment.folder().join("etcd")));
        spawn(environment, "etcd", &command)
    }

    fn apiserver(&self, environment: &Environment, key: &Path) -> anyhow::Result<Process> {
        let hosts = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            &KUBERNETES_SERVICE.to_string(),
            &CONTROL_PLANE_ADDRESS.to_string(),
        ];
        let serving = self.authority.server("apiserver", &hosts)?;
        let Pair {
            certificate,
            key: kubelet_key,
        } = self
            .authority
            .client("kube-apiserver-kubelet-client", Some("system:masters"))?;
        let mut command = self.program(environment, "kube-apiserver")?;
        command
            .args(["--etcd-servers=http://127.0.0.1:2379"])
            .arg(flag("bind-address", CONTROL_PLANE_ADDRESS.to_string()))
            .arg(flag("advertise-address", CONTROL_PLANE_ADDRESS.to_string()))
            .arg(flag("secure-port", API_PORT.to_string()))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg("--enable-admission-plugins=NodeRestriction")
            // Webhooks are called at their pods, since the environment has no kube-proxy.
            .arg("--enable-aggregator-routing=true")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(flag("service-account-key-file", key))
            .arg(flag("service-account-signing-key-file", key))
            .arg(flag("tls-cert-file", serving.certificate))
            .arg(flag("tls-private-key-file", serving.key))
            .arg(flag("client-ca-file", self.authority.certificate()))
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(flag(
                "kubelet-certificate-authority",
                self.authority.certificate(),
            ))
            .arg(flag("kubelet-client-certificate", certificate))
            .arg(flag("kubelet-client-key", kubelet_key));
        spawn(environment, "apiserver", &command)
    }

    fn controllers(&self, environment: &Environment, key: &Path) -> anyhow::Result<Process> {
        let mut command = self.program(environment, "kube-controller-manager")?;
        command
            .args(["--use-service-account-credentials=true"])
            .arg("--allocate-node-cidrs=false")
            // Created if it does not exist, by default in /usr, which belongs to the machine.
            .arg(flag(
                "flex-volume-plugin-dir",
                environment.folder().join("volume-plugins"),
            ))
            .arg(flag("root-ca-file", self.authority.certificate()))
            .arg(flag("service-account-private-key-file", key));
        self.lead(
            environment,
            &mut command,
            "controllers",
            "system:kube-controller-manager",
        )
    }

    fn scheduler(&self, environment: &Environment) -> anyhow::Result<Process> {
        let mut command = self.program(environment, "kube-scheduler")?;
        self.lead(
            environment,
            &mut command,
            "scheduler",
            "system:kube-scheduler",
        )
    }

    fn names(&self, environment: &Environment) -> anyhow::Result<Process> {
        let kubeconfig = self.kubeconfig(
            environment.folder(),
            "names",
            "system:names",
            Some("system:masters"),
        )?;
        let mut command = self.program(environment, "names")?;
        command
            .arg(flag("kubeconfig", kubeconfig))
            .arg(flag("listen", format!("{CONTROL_PLANE_ADDRESS}:53")));
        spawn(environment, "names", &command)
    }

    /// Starts the controller manager or the scheduler, with their common flags.
    fn lead(
        &self,
        environment: &Environment,
        command: &mut Command,
        name: &str,
        user: &str,
    ) -> anyhow::Result<Process> {
        let kubeconfig = self.kubeconfig(environment.folder(), name, user, None)?;
        command
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(flag("kubeconfig", &kubeconfig))
            .arg(flag("authentication-kubeconfig", &kubeconfig))
            .arg(flag("authorization-kubeconfig", &kubeconfig));
        spawn(environment, name, command)
    }

    /// Returns an error with the end of the output if a component has exited.
    pub(super) fn check_running(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.exited()? {
                bail!("{} left with {status}\n{}", process.name(), process.tail());
            }
        }
        Ok(())
    }
}

fn spawn(environment: &Environment, name: &str, command: &Command) -> anyhow::Result<Process> {
    let log = environment.folder().join(format!("{name}.log"));
    Process::spawn(name, command, &log).with_context(|| format!("{name} can't be started"))
}
