//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and a DNS server in a site's
//! network namespace.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use super::DEADLINE;
use super::site::{SITE_ADDRESS, Site};
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
    /// site.
    pub(super) async fn start(
        site: &Site,
        binary: PathBuf,
        shell: impl Fn(&Path) -> anyhow::Result<Shell>,
    ) -> anyhow::Result<Self> {
        let folder = site.folder();
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
        this.processes.push(this.etcd(site)?);
        let mut apiserver = this.apiserver(site, &key)?;
        let ready = ["kubectl", "get", "--raw", "/readyz"];
        apiserver
            .until(DEADLINE, async || {
                shell(&this.admin)?.exec(&ready).await?.ok()
            })
            .await?;
        let started = [
            apiserver,
            // Both exit early if they find no API server.
            this.controllers(site, &key)?,
            this.scheduler(site)?,
            this.names(site)?,
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
        let url = format!("https://{SITE_ADDRESS}:{API_PORT}");
        let identity = Identity::Certificate(&pair);
        let content = kubeconfig(&url, self.authority.certificate(), &identity);
        std::fs::write(&path, content.to_string())?;
        Ok(path)
    }

    fn program(&self, site: &Site, name: &str) -> anyhow::Result<Command> {
        let mut command = site.netns()?.command(&self.binary.display().to_string());
        command.arg(name);
        Ok(command)
    }

    fn etcd(&self, site: &Site) -> anyhow::Result<Process> {
        let mut command = self.program(site, "etcd")?;
        command
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .arg(flag("data-dir", site.folder().join("etcd")));
        spawn(site, "etcd", &command)
    }

    fn apiserver(&self, site: &Site, key: &Path) -> anyhow::Result<Process> {
        let hosts = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            &KUBERNETES_SERVICE.to_string(),
            &SITE_ADDRESS.to_string(),
        ];
        let serving = self.authority.server("apiserver", &hosts)?;
        let Pair {
            certificate,
            key: kubelet_key,
        } = self
            .authority
            .client("kube-apiserver-kubelet-client", Some("system:masters"))?;
        let mut command = self.program(site, "kube-apiserver")?;
        command
            .args(["--etcd-servers=http://127.0.0.1:2379"])
            .arg(flag("bind-address", SITE_ADDRESS.to_string()))
            .arg(flag("advertise-address", SITE_ADDRESS.to_string()))
            .arg(flag("secure-port", API_PORT.to_string()))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg("--enable-admission-plugins=NodeRestriction")
            // Webhooks are called at their pods, since the site has no kube-proxy.
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
        spawn(site, "apiserver", &command)
    }

    fn controllers(&self, site: &Site, key: &Path) -> anyhow::Result<Process> {
        let mut command = self.program(site, "kube-controller-manager")?;
        command
            .args(["--use-service-account-credentials=true"])
            .arg("--allocate-node-cidrs=false")
            // Created if it does not exist, by default in /usr, which belongs to the machine.
            .arg(flag(
                "flex-volume-plugin-dir",
                site.folder().join("volume-plugins"),
            ))
            .arg(flag("root-ca-file", self.authority.certificate()))
            .arg(flag("service-account-private-key-file", key));
        self.lead(
            site,
            &mut command,
            "controllers",
            "system:kube-controller-manager",
        )
    }

    fn scheduler(&self, site: &Site) -> anyhow::Result<Process> {
        let mut command = self.program(site, "kube-scheduler")?;
        self.lead(site, &mut command, "scheduler", "system:kube-scheduler")
    }

    fn names(&self, site: &Site) -> anyhow::Result<Process> {
        let kubeconfig = self.kubeconfig(
            site.folder(),
            "names",
            "system:names",
            Some("system:masters"),
        )?;
        let mut command = self.program(site, "names")?;
        command
            .arg(flag("kubeconfig", kubeconfig))
            .arg(flag("listen", format!("{SITE_ADDRESS}:53")));
        spawn(site, "names", &command)
    }

    /// Starts the controller manager or the scheduler, with their common flags.
    fn lead(
        &self,
        site: &Site,
        command: &mut Command,
        name: &str,
        user: &str,
    ) -> anyhow::Result<Process> {
        let kubeconfig = self.kubeconfig(site.folder(), name, user, None)?;
        command
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(flag("kubeconfig", &kubeconfig))
            .arg(flag("authentication-kubeconfig", &kubeconfig))
            .arg(flag("authorization-kubeconfig", &kubeconfig));
        spawn(site, name, command)
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

fn spawn(site: &Site, name: &str, command: &Command) -> anyhow::Result<Process> {
    let log = site.folder().join(format!("{name}.log"));
    Process::spawn(name, command, &log).with_context(|| format!("{name} can't be started"))
}
