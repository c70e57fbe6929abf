//! A real Kubernetes API: etcd, kube-apiserver and, on request, kube-controller-manager, on
//! loopback. There is no kubelet and no scheduler: tests place pods themselves and set their status
//! ([`crate::TestPod`]).

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use parking_lot::{Mutex, MutexGuard};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::OnceCell;

use crate::ca::{Authority, Pair};
use crate::hack;
use crate::kubeconfig::{Identity, kubeconfig};
use crate::process::Process;
use crate::scratch::Scratch;

/// Startup takes four seconds on an idle machine, but up to this long on two cores that also
/// compile.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The controllers that need no kubelet. Excludes node-lifecycle and pod-garbage-collector, which
/// would remove the pods of nodes without heartbeats.
const CONTROLLERS: &str = "serviceaccount-controller,root-ca-certificate-publisher-controller,\
    namespace-controller,garbage-collector-controller,deployment-controller,replicaset-controller,\
    daemonset-controller,statefulset-controller,job-controller,endpointslice-controller,\
    clusterrole-aggregation-controller";

/// A running API server with its etcd. Fields are dropped in order: processes, then files.
pub struct Cluster {
    controllers: Option<Process>,
    apiserver: Mutex<Option<Process>>,
    _etcd: Process,
    binary: PathBuf,
    port: ReservedPort,
    etcd_port: ReservedPort,
    authority: Authority,
    admin: Pair,
    serving: Pair,
    service_account_key: PathBuf,
    scratch: Scratch,
}

impl Cluster {
    /// Starts an API server for one test, which may stop it.
    ///
    /// # Errors
    /// Returns an error with the end of the log if the binary cannot be built or does not become
    /// ready.
    pub async fn start() -> anyhow::Result<Self> {
        let scratch = Scratch::new("rolegate-cluster-")?;
        let dir = scratch.path();
        let authority = Authority::new(dir)?;
        let admin = authority.client("admin", Some("system:masters"))?;
        let serving = authority.server(
            "apiserver",
            &["127.0.0.1", "localhost", "kubernetes.default.svc"],
        )?;
        let service_account_key = dir.join("service-accounts.key");
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        std::fs::write(&service_account_key, key.serialize_pem())?;

        let binary = binary()?;
        let etcd_port = ReservedPort::new()?;
        let cluster = Self {
            controllers: None,
            apiserver: Mutex::default(),
            _etcd: etcd(&binary, dir, &etcd_port)?,
            binary,
            port: ReservedPort::new()?,
            etcd_port,
            authority,
            admin,
            serving,
            service_account_key,
            scratch,
        };
        cluster.start_apiserver().await?;
        Ok(cluster)
    }

    /// Like [`Self::start`], with a controller manager, for tests of Deployments, default service
    /// accounts or the deletion of namespaces.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_controllers() -> anyhow::Result<Self> {
        let mut cluster = Self::start().await?;
        let user = "system:kube-controller-manager";
        let pair = cluster.authority.client(user, None)?;
        let kubeconfig = cluster.write_kubeconfig("controllers", &Identity::Certificate(&pair))?;
        let mut command = Command::new(&cluster.binary);
        command
            .arg("kube-controller-manager")
            .args([
                "--use-service-account-credentials=true",
                "--leader-elect=false",
            ])
            .args(["--secure-port=0", &format!("--controllers={CONTROLLERS}")])
            .arg(flag("kubeconfig", &kubeconfig))
            .arg(flag("root-ca-file", cluster.authority.certificate()))
            .arg(flag(
                "service-account-private-key-file",
                &cluster.service_account_key,
            ));
        let log = cluster.dir().join("controllers.log");
        let mut process = Process::spawn("controllers", &command, &log)?;
        let accounts = Api::<ServiceAccount>::namespaced(cluster.admin()?, "default");
        process
            .until(START_TIMEOUT, async || Ok(accounts.get("default").await?))
            .await?;
        cluster.controllers = Some(process);
        Ok(cluster)
    }

    /// Returns the API server shared by all tests of a test binary. The first caller starts it, and
    /// it ends with the test process. Tests must use namespaces of their own.
    ///
    /// # Errors
    /// As [`Self::start`]. The next caller retries.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Returns the API server's URL, `https://127.0.0.1:PORT`, which is also its token issuer.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port())
    }

    /// Returns the API server's port on the host's loopback, for [`crate::Forward`].
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Returns the CA certificate of the API server, as PEM.
    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Issues a certificate for these names and addresses by the authority of [`Self::ca_pem`], as
    /// PEM files with its key.
    ///
    /// # Errors
    /// Returns an error if the files cannot be written.
    pub fn serving_pair(&self, name: &str, hosts: &[&str]) -> anyhow::Result<(PathBuf, PathBuf)> {
        let pair = self.authority.server(name, hosts)?;
        Ok((pair.certificate, pair.key))
    }

    /// Returns the directory of this cluster's files and logs, which is removed with it.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Returns a client with all permissions, for the current async runtime.
    ///
    /// # Errors
    /// Returns an error if the client cannot be built. It does not connect yet.
    pub fn admin(&self) -> anyhow::Result<Client> {
        self.client(&Identity::Certificate(&self.admin))
    }

    /// Returns a client that authenticates with a bearer token.
    ///
    /// # Errors
    /// As [`Self::admin`].
    pub fn client_as_token(&self, token: &str) -> anyhow::Result<Client> {
        self.client(&Identity::Token(token))
    }

    /// Writes a kubeconfig with all permissions.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn admin_kubeconfig(&self) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig("admin", &Identity::Certificate(&self.admin))
    }

    /// Writes a kubeconfig with a bearer token, with a unique `name`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn kubeconfig_for_token(&self, name: &str, token: &str) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(name, &Identity::Token(token))
    }

    /// Kills the API server, as a fault; etcd stays.
    pub fn stop_apiserver(&self) {
        self.running().take();
    }

    /// Freezes the API server, as a fault: requests and watches hang without an error.
    ///
    /// # Errors
    /// Returns an error if it is not running.
    pub fn freeze_apiserver(&self) -> anyhow::Result<()> {
        self.signal_apiserver(Signal::STOP)
    }

    /// Continues a frozen API server.
    ///
    /// # Errors
    /// Returns an error if it is not running.
    pub fn thaw_apiserver(&self) -> anyhow::Result<()> {
        self.signal_apiserver(Signal::CONT)
    }

    fn signal_apiserver(&self, signal: Signal) -> anyhow::Result<()> {
        let running = self.running();
        let process = running.as_ref().context("the API server doesn't run")?;
        process.signal(signal)
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock()
    }

    /// Starts the API server, on the same port and with the same keys as before.
    ///
    /// # Errors
    /// Returns an error with the end of the log if it does not become ready.
    pub async fn start_apiserver(&self) -> anyhow::Result<()> {
        ensure!(self.running().is_none(), "the API server runs already");
        let url = self.url();
        let mut command = Command::new(&self.binary);
        command
            .arg("kube-apiserver")
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .args([
                "--permit-port-sharing=true",
                "--endpoint-reconciler-type=none",
            ])
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg(flag("service-account-issuer", url))
            .arg(flag("secure-port", self.port().to_string()))
            .arg(flag(
                "etcd-servers",
                format!("http://127.0.0.1:{}", self.etcd_port.number),
            ))
            .arg(flag("tls-cert-file", &self.serving.certificate))
            .arg(flag("tls-private-key-file", &self.serving.key))
            .arg(flag("client-ca-file", self.authority.certificate()))
            .arg(flag("service-account-key-file", &self.service_account_key))
            .arg(flag(
                "service-account-signing-key-file",
                &self.service_account_key,
            ));
        let previous = self.previous_service_account_key();
        if previous.exists() {
            // Tokens that it signed stay valid, and its public key stays published.
            command.arg(flag("service-account-key-file", previous));
        }
        let log = self.dir().join("apiserver.log");
        let mut process = Process::spawn("apiserver", &command, &log)?;
        let admin = self.admin()?;
        process
            .until(START_TIMEOUT, async || {
                let ready = http::Request::get("/readyz").body(Vec::new())?;
                Ok(admin.request_text(ready).await?)
            })
            .await?;
        *self.running() = Some(process);
        Ok(())
    }

    /// Kills and restarts the API server, which ends every watch.
    ///
    /// # Errors
    /// As [`Self::start_apiserver`].
    pub async fn restart_apiserver(&self) -> anyhow::Result<()> {
        self.stop_apiserver();
        self.start_apiserver().await
    }

    /// Restarts the API server with a new key for ServiceAccount tokens. Tokens of the previous key
    /// stay valid.
    ///
    /// # Errors
    /// As [`Self::start_apiserver`].
    pub async fn rotate_service_account_key(&self) -> anyhow::Result<()> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        std::fs::rename(
            &self.service_account_key,
            self.previous_service_account_key(),
        )?;
        std::fs::write(&self.service_account_key, key.serialize_pem())?;
        self.restart_apiserver().await
    }

    fn previous_service_account_key(&self) -> PathBuf {
        self.service_account_key.with_extension("previous")
    }

    fn client(&self, identity: &Identity) -> anyhow::Result<Client> {
        let kubeconfig: Kubeconfig = serde_json::from_value(self.kubeconfig(identity))?;
        Ok(Client::try_from(kubeconfig)?)
    }

    fn write_kubeconfig(&self, name: &str, identity: &Identity) -> anyhow::Result<PathBuf> {
        let path = self.dir().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, self.kubeconfig(identity).to_string())?;
        Ok(path)
    }

    fn kubeconfig(&self, identity: &Identity) -> Value {
        kubeconfig(&self.url(), self.authority.certificate(), identity)
    }
}

/// Returns the path of the program that runs the parts of Kubernetes: `ROLEGATE_CLUSTER_BINARY`, or the
/// one built or found by `hack/kubernetes`, which honours `KUBEBUILDER_ASSETS`.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = BINARY.get() {
        return Ok(path.clone());
    }
    let path = match std::env::var_os("ROLEGATE_CLUSTER_BINARY") {
        Some(path) => PathBuf::from(path),
        None => hack("kubernetes", &[])?,
    };
    Ok(BINARY.get_or_init(|| path).clone())
}

fn etcd(binary: &Path, dir: &Path, client: &ReservedPort) -> anyhow::Result<Process> {
    let peer = ReservedPort::new()?;
    let client_url = format!("http://127.0.0.1:{}", client.number);
    let peer_url = format!("http://127.0.0.1:{}", peer.number);
    let mut command = Command::new(binary);
    command
        .arg("etcd")
        .args([
            "--unsafe-no-fsync",
            "--socket-reuse-port",
            "--log-level=warn",
        ])
        .arg(flag("data-dir", dir.join("etcd")))
        .arg(flag("listen-client-urls", &client_url))
        .arg(flag("advertise-client-urls", &client_url))
        .arg(flag("listen-peer-urls", &peer_url))
        .arg(flag("initial-advertise-peer-urls", &peer_url))
        .arg(flag("initial-cluster", format!("default={peer_url}")));
    Process::spawn("etcd", &command, &dir.join("etcd.log")).context("the cluster needs etcd first")
}

pub(crate) fn flag(name: &str, value: impl AsRef<OsStr>) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

/// A port reserved for one server. Kubernetes does not accept port 0, so the port is bound (not
/// listened on) here, and the server joins with SO_REUSEPORT. A port that was found and released
/// could be taken by others until the server binds it, and while the server restarts.
struct ReservedPort {
    number: u16,
    _socket: Socket,
}

impl ReservedPort {
    fn new() -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = socket.local_addr()?.as_socket();
        Ok(Self {
            number: address.context("not an IP socket")?.port(),
            _socket: socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use k8s_openapi::api::core::v1::Pod;
    use kube::api::ListParams;

    use super::*;
    use crate::{TestPod, eventually};

    #[tokio::test]
    async fn pods_survive_a_restart_and_processes_end_with_the_cluster() {
        let cluster = Cluster::start().await.unwrap();
        cluster
            .create_namespace("shop", &[("iam.amazonaws.com/allowed-roles", "[]")])
            .await
            .unwrap();
        let pod = TestPod::new("shop", "web", "node-a")
            .role("web")
            .address([10, 0, 0, 7]);
        cluster.run_pod(&pod).await.unwrap();
        cluster.stop_apiserver();
        let pods = Api::<Pod>::all(cluster.admin().unwrap());
        assert!(pods.list(&ListParams::default()).await.is_err());
        cluster.start_apiserver().await.unwrap();

        let selector = "spec.nodeName=node-a,status.podIP=10.0.0.7";
        let found = pods.list(&ListParams::default().fields(selector)).await;
        assert_eq!(found.unwrap().items.len(), 1);
        cluster.delete_pod("shop", "web").await.unwrap();
        let left = pods.list(&ListParams::default()).await.unwrap();
        assert!(left.items.is_empty());

        let dir = cluster.dir().to_owned();
        let pid = cluster.running().as_ref().unwrap().pid();
        drop(cluster);
        assert!(!dir.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn with_controllers_a_namespace_gets_its_service_account() {
        let cluster = Cluster::start_with_controllers().await.unwrap();
        cluster
            .apply_manifest("apiVersion: v1\nkind: Namespace\nmetadata: { name: fresh }\n")
            .await
            .unwrap();
        let accounts = Api::<ServiceAccount>::namespaced(cluster.admin().unwrap(), "fresh");
        eventually(START_TIMEOUT, async || Ok(accounts.get("default").await?))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_manifest_with_an_unknown_field_is_refused() {
        let cluster = Cluster::shared().await.unwrap();
        let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\ndatta: {}\n";
        let error = cluster.apply_manifest(manifest).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("ConfigMap a") && text.contains("datta"),
            "{text}"
        );
    }

    /// Runs `hack/kubernetes` with `KUBEBUILDER_ASSETS` set to a folder with these programs, each of
    /// which prints its name and arguments.
    fn kubernetes(programs: &[&str]) -> (tempfile::TempDir, std::process::Output) {
        let assets = tempfile::tempdir().unwrap();
        for program in programs {
            let path = assets.path().join(program);
            std::fs::write(&path, "#!/bin/sh\necho \"${0##*/}\" \"$@\"\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let output = Command::new(crate::repository().join("hack/kubernetes"))
            .env("KUBEBUILDER_ASSETS", assets.path())
            .env("ROLEGATE_CACHE", assets.path().join("cache"))
            .output()
            .unwrap();
        (assets, output)
    }

    #[test]
    fn programs_of_kubebuilder_assets_are_used_unbuilt() {
        let (_assets, output) = kubernetes(&["kube-apiserver", "etcd"]);
        let program = String::from_utf8(output.stdout).unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new(program.trim()).args(arguments).output();
            output.unwrap()
        };
        assert_eq!(
            run(&["etcd", "--data-dir", "a"]).stdout,
            b"etcd --data-dir a\n"
        );
        let missing = run(&["kubelet"]);
        assert_eq!(missing.status.code(), Some(64));
        let text = String::from_utf8_lossy(&missing.stderr);
        assert!(text.contains("has no kubelet: unset"), "{text}");
    }

    #[test]
    fn kubebuilder_assets_without_etcd_are_refused() {
        let (_assets, output) = kubernetes(&["kube-apiserver"]);
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("has no etcd: unset"), "{text}");
    }
}
