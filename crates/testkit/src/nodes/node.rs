//! A node: a machine made of network, mount, PID, UTS and IPC namespaces, with unmodified
//! containerd, kube-proxy and kubelet. Its directory is its disk.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::control_plane::ControlPlane;
use super::environment::{self, CONTROL_PLANE_ADDRESS, Environment};
use super::spec::NodeSpec;
use super::user::{Ran, Shell};
use super::{Cni, DEADLINE, Options};
use crate::eventually;
use crate::lab::Namespace;
use crate::process::Process;

/// Time that the kernel may take to end all processes of a node.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A node of a [`super::TestCluster`]. Dropping it powers it off.
#[derive(Debug)]
pub struct TestNode {
    spec: NodeSpec,
    /// Its name on the machine, for its namespace and its cgroups.
    full_name: String,
    folder: PathBuf,
    cluster_binary: PathBuf,
    tools: PathBuf,
    power: Option<Power>,
}

/// The state of a running node.
#[derive(Debug)]
struct Power {
    process: Process,
    netns: Namespace,
}

impl TestNode {
    /// Creates a node with an empty disk, powered off.
    pub(super) fn new(
        environment: &Environment,
        control_plane: &ControlPlane,
        spec: NodeSpec,
        options: &Options,
        tools: &Path,
    ) -> anyhow::Result<Self> {
        let full_name = format!("{}-{}", environment.name(), spec.name);
        let folder = environment.folder().join(&spec.name);
        fs::create_dir(&folder)?;
        let node = Self {
            full_name,
            folder,
            cluster_binary: control_plane.binary.clone(),
            tools: tools.to_owned(),
            power: None,
            spec,
        };
        node.write_network(options.cni)?;
        node.write_runtime()?;
        node.write_kubelet(control_plane, options.startup_taint)?;
        let before_kubelet = &options.before_kubelet;
        let hook = format!(
            "export PATH='{}':\"$PATH\"\n{before_kubelet}\n",
            tools.display()
        );
        let hook = if before_kubelet.is_empty() { "" } else { &hook };
        fs::write(node.folder.join("before-kubelet"), hook)?;
        fs::write(
            node.folder.join("resolv.conf"),
            format!("nameserver {CONTROL_PLANE_ADDRESS}\n"),
        )?;
        Ok(node)
    }

    /// Returns its name in Kubernetes.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Returns its address for pods and other nodes.
    pub fn address(&self) -> Ipv4Addr {
        self.spec.address
    }

    /// Returns the log of a service on the node: `kubelet`, `containerd` or `kube-proxy`.
    pub fn log(&self, service: &str) -> String {
        let log = self.folder.join(format!("{service}.log"));
        let bytes = fs::read(log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs a bash script on the node, as root, with `rolegate` in its PATH.
    ///
    /// # Errors
    /// Returns an error if the node is off, or the script cannot be run or does not end, but not if
    /// it fails.
    pub async fn shell(&self, script: &str) -> anyhow::Result<Ran> {
        let power = self.power.as_ref().context("the node is off")?;
        let pid = init(power.process.pid())?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={pid}"))
            .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--"]);
        Shell::new(command, &self.tools).run(script).await
    }

    /// Returns the path of the kubelet's kubeconfig, on the machine and on the node.
    pub fn kubelet_credential(&self) -> PathBuf {
        self.folder.join("kubelet.kubeconfig")
    }

    /// Stops a service of the node as systemd does, and waits until it has started again:
    /// `kubelet`, `containerd` or `kube-proxy`.
    ///
    /// # Errors
    /// Returns an error if the service does not run, or does not start again.
    pub async fn restart(&self, service: &str) -> anyhow::Result<()> {
        let before = self.process(service)?;
        kill_process(before, Signal::TERM)?;
        eventually(DEADLINE, async || {
            let now = self.process(service)?;
            ensure!(now != before, "{service} has not ended yet");
            Ok(())
        })
        .await
    }

    /// Returns the machine's ID of a service, or of the first process of a container, by the name
    /// of its program and its first argument, such as `rolegate agent`.
    ///
    /// # Errors
    /// Returns an error if there is no such process.
    pub fn process(&self, command: &str) -> anyhow::Result<Pid> {
        let power = self.power.as_ref().context("the node is off")?;
        // The parent of a service is its loop in node.sh, the parent of a container is its shim.
        for parent in children(init(power.process.pid())?)? {
            for id in children(parent).unwrap_or_default() {
                let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let words: Vec<&str> = line.split('\0').take(2).collect();
                if words.join(" ").contains(command) {
                    return Pid::from_raw(id).context("process 0");
                }
            }
        }
        anyhow::bail!("{} does not run {command}", self.name())
    }

    /// Sets the images of the node, loaded at its next boot.
    pub(super) fn set_images(&self, images: &[(String, PathBuf)]) -> anyhow::Result<()> {
        let lines = images
            .iter()
            .map(|(name, archive)| format!("{name} {}\n", archive.display()));
        Ok(fs::write(
            self.folder.join("images"),
            lines.collect::<String>(),
        )?)
    }

    /// Powers the node on, without waiting until it is ready.
    pub(super) fn boot(&mut self, environment: &Environment) -> anyhow::Result<()> {
        ensure!(self.power.is_none(), "{} runs already", self.name());
        let netns = Namespace::new(self.full_name.clone())?;
        environment.connect(&netns, &self.spec)?;
        // Not `ip netns exec`, which mounts a /sys without cgroups.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", netns.path().display()))
            .args(["unshare", "--mount", "--pid", "--uts", "--ipc"])
            .args(["--fork", "--mount-proc", "--kill-child"]);
        let script = environment::script("node.sh");
        command
            .arg(script.get_program())
            .args(script.get_args())
            .args([&self.full_name, self.name()])
            .arg(self.spec.address.to_string())
            .arg(&self.folder)
            .arg(&self.cluster_binary);
        let process = Process::spawn(self.name(), &command, &self.folder.join("boot.log"))?;
        self.power = Some(Power { process, netns });
        Ok(())
    }

    /// Returns `true` if the node is on.
    pub fn is_on(&self) -> bool {
        self.power.is_some()
    }

    /// Returns an error with the output if the node went off by itself.
    pub(super) fn check_running(&mut self) -> anyhow::Result<()> {
        let power = self.power.as_mut().context("the node is off")?;
        if let Some(status) = power.process.exited()? {
            let log = power.process.log();
            anyhow::bail!("{} went off with {status}: {log}", self.name());
        }
        Ok(())
    }

    /// Powers the node off: all of its processes end at once, without a shutdown. The disk stays.
    pub(super) fn cut(&mut self, environment: &Environment) -> anyhow::Result<()> {
        let Some(mut power) = self.power.take() else {
            return Ok(());
        };
        // Once process 1 is reaped, nothing in its namespaces runs any more.
        if let Some(init) = init(power.process.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(init, Signal::KILL);
            let deadline = Instant::now() + EXIT_TIMEOUT;
            while power.process.exited()?.is_none() {
                ensure!(Instant::now() < deadline, "{} does not end", self.name());
                thread::sleep(Duration::from_millis(10));
            }
        }
        power.process.kill();
        environment.disconnect(&self.spec)?;
        drop(power.netns);
        // Leftover cgroups would keep containers from starting at the next boot.
        environment::clean(&[&self.full_name])
    }

    /// Deletes the disk.
    pub(super) fn scrap(self) -> anyhow::Result<()> {
        ensure!(self.power.is_none(), "{} still runs", self.name());
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn write_network(&self, cni: Cni) -> anyhow::Result<()> {
        let ipam = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": self.spec.pods }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            // On a tmpfs: addresses must not survive a boot.
            "dataDir": "/run/cni/addresses",
        });
        let network = match cni {
            Cni::Bridge => json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": ipam,
            }),
            Cni::Ptp => json!({ "type": "ptp", "ipam": ipam }),
        };
        let list = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                network,
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        Ok(fs::write(
            self.folder.join("network.conflist"),
            list.to_string(),
        )?)
    }

    /// Writes version 2 of containerd's configuration, which 1.x needs and 2.x reads.
    fn write_runtime(&self) -> anyhow::Result<()> {
        let folder = self.folder.join("containerd");
        let config = format!(
            r#"version = 2
root = "{}"
state = "/run/containerd"
# It makes a folder in /opt, which is the machine's.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{}"
# Root may lack the right to lower a score below its own.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"#,
            folder.display(),
            super::image::PAUSE
        );
        Ok(fs::write(self.folder.join("containerd.toml"), config)?)
    }

    fn write_kubelet(
        &self,
        control_plane: &ControlPlane,
        startup_taint: Option<&str>,
    ) -> anyhow::Result<()> {
        let user = format!("system:node:{}", self.name());
        control_plane.kubeconfig(&self.folder, "kubelet", &user, Some("system:nodes"))?;
        control_plane.kubeconfig(&self.folder, "proxy", "system:kube-proxy", None)?;
        let address = self.spec.address.to_string();
        let serving = control_plane
            .authority
            .server(&self.full_name, &[&address, self.name()])?;
        let none = json!({
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        });
        let authority = control_plane.authority.certificate();
        let taints = startup_taint.map(|key| json!([{ "key": key, "effect": "NoSchedule" }]));
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": authority },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            "resolvConf": "/etc/resolv.conf",
            "clusterDomain": "cluster.local",
            "clusterDNS": [CONTROL_PLANE_ADDRESS],
            "staticPodPath": "/etc/kubernetes/manifests",
            "registerWithTaints": taints,
            // Not in /usr, which belongs to the machine.
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            // Kubernetes 1.35 and newer need this for cgroup v1; v2 is used if available.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.full_name),
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            // The machine's disk and memory are not the node's.
            "evictionHard": none,
            "imageGCHighThresholdPercent": 100,
        });
        Ok(fs::write(
            self.folder.join("kubelet.json"),
            config.to_string(),
        )?)
    }
}

/// Returns process 1 of a node by its ID on the machine: the only child of `unshare`.
fn init(unshare: u32) -> anyhow::Result<i32> {
    let first = children(unshare.try_into()?)?.first().copied();
    first.context("the node has no process yet")
}

/// Returns the IDs of a process's children.
fn children(id: i32) -> anyhow::Result<Vec<i32>> {
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let ids = listed.split_whitespace().map(str::parse);
    Ok(ids.collect::<Result<_, _>>()?)
}
