//! The use of a cluster: kubectl, scripts, pods and rolegate's manifests.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::environment::Environment;
use super::user::{Ran, Shell};
use super::{CLIENT, DEADLINE, TestCluster, is_ready, list, text};
use crate::{Rolegate, eventually, hack, repository};

impl TestCluster {
    /// Returns a shell in the control plane's network, as an administrator has it: `kubectl` and
    /// `rolegate` in its PATH, KUBECONFIG with all permissions, and an empty home as its working
    /// directory.
    ///
    /// # Errors
    /// Returns an error if the home cannot be created.
    pub fn shell(&self) -> anyhow::Result<Shell> {
        shell(&self.environment, &self.tools, &self.control_plane.admin)
    }

    /// Runs kubectl and returns its output.
    ///
    /// # Errors
    /// Returns an error with the output if it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let command: Vec<&str> = std::iter::once(&"kubectl")
            .chain(arguments)
            .copied()
            .collect();
        let ran = self.shell()?.exec(&command).await?;
        ran.ok().with_context(|| format!("kubectl {arguments:?}"))
    }

    /// Runs Helm, which the first call builds, and returns its output.
    ///
    /// # Errors
    /// Returns an error with the output if it fails.
    pub async fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let helm = spawn_blocking(|| hack("helm", &[])).await??;
        let helm = helm.display().to_string();
        let command = [&[&*helm][..], arguments].concat();
        let ran = self.shell()?.exec(&command).await?;
        ran.ok().with_context(|| format!("helm {arguments:?}"))
    }

    /// Returns the directory of our chart.
    pub fn chart(&self) -> String {
        repository().join("charts/rolegate").display().to_string()
    }

    /// Runs `kubectl get ARGUMENTS -o json`.
    ///
    /// # Errors
    /// Returns an error if the object does not exist.
    pub async fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let command = [&["get", "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.kubectl(&command).await?)?)
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new_in(self.environment.folder())?;
        fs::write(file.path(), manifest)?;
        let path = file.path().display().to_string();
        self.kubectl(&["apply", "-f", &path]).await.map(drop)
    }

    /// Creates a namespace, and waits for its service account, which pods need.
    ///
    /// # Errors
    /// Returns an error if the API server refuses it.
    pub async fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        self.kubectl(&["create", "namespace", name]).await?;
        eventually(DEADLINE, async || {
            self.get(&["serviceaccount", "default", "-n", name]).await
        })
        .await
        .map(drop)
    }

    /// Runs a pod with the image [`CLIENT`] and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if it is denied or does not become ready.
    pub async fn run_client(&self, pod: &ClientPod<'_>) -> anyhow::Result<()> {
        self.apply(&pod.object().to_string()).await?;
        let what = format!("pod/{}", pod.name);
        self.wait(pod.namespace, &what, "condition=Ready").await
    }

    /// Runs `kubectl wait --for=CONDITION`.
    ///
    /// # Errors
    /// Returns an error with the current state if the condition does not hold within minutes.
    pub async fn wait(&self, namespace: &str, what: &str, condition: &str) -> anyhow::Result<()> {
        let condition = format!("--for={condition}");
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        let waited = self
            .kubectl(&["wait", what, "-n", namespace, &condition, &timeout])
            .await;
        if let Err(error) = waited {
            let described = self.kubectl(&["describe", what, "-n", namespace]).await;
            return Err(error.context(described.unwrap_or_default()));
        }
        Ok(())
    }

    /// Waits until a Deployment or DaemonSet has been rolled out.
    ///
    /// # Errors
    /// Returns an error with the state of its pods if it takes longer than minutes.
    pub async fn rolled_out(&self, namespace: &str, what: &str) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        let status = ["rollout", "status", what, "-n", namespace, &timeout];
        if let Err(error) = self.kubectl(&status).await {
            let described = self.kubectl(&["describe", "pods", "-n", namespace]).await;
            return Err(error.context(described.unwrap_or_default()));
        }
        Ok(())
    }

    /// Runs a program in a pod's first container.
    ///
    /// # Errors
    /// Returns an error if kubectl cannot be run, but not if the program fails.
    pub async fn exec(&self, namespace: &str, pod: &str, program: &[&str]) -> anyhow::Result<Ran> {
        let command = [
            &["kubectl", "exec", "-n", namespace, pod, "--"][..],
            program,
        ]
        .concat();
        self.shell()?.exec(&command).await
    }

    /// Returns a manifest of `deploy/`, unchanged. The image has the name in the manifest, and its
    /// STS endpoint is set.
    ///
    /// # Errors
    /// Returns an error if there is no such file.
    pub fn manifest(&self, file: &str) -> anyhow::Result<String> {
        let path = repository().join("deploy").join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Installs the agents of `deploy/rolegate-agent.yaml`, and waits until all are ready.
    ///
    /// # Errors
    /// Returns an error if they do not become ready.
    pub async fn install_agents(&self) -> anyhow::Result<()> {
        let manifest = self.manifest("rolegate-agent.yaml")?;
        self.apply(&self.manifest("namespace.yaml")?).await?;
        self.apply(&manifest).await?;
        self.agents_ready().await
    }

    /// Waits until each node that is on has a ready agent. Unlike a rollout, this does not wait
    /// until agents have been ready for a while.
    ///
    /// # Errors
    /// Returns an error with the agents' state if they do not become ready.
    pub async fn agents_ready(&self) -> anyhow::Result<()> {
        let namespace = ["-n", "rolegate-system"];
        let ready = eventually(DEADLINE, async || {
            let pods = self.get(&[&["pods"][..], &namespace].concat()).await?;
            let pods = list(&pods, "/items");
            for node in self.nodes.iter().filter(|node| node.is_on()) {
                let mut there = pods
                    .iter()
                    .filter(|pod| text(pod, "/spec/nodeName") == node.name());
                ensure!(there.any(is_ready), "{} has no ready agent", node.name());
            }
            Ok(())
        });
        if let Err(error) = ready.await {
            let pods = [&["describe", "pods"][..], &namespace].concat();
            let logs = ["logs", "daemonset/rolegate-agent", "--tail=30"];
            let logs = self.kubectl(&[&logs[..], &namespace].concat()).await;
            let pods = self.kubectl(&pods).await.unwrap_or_default();
            return Err(error.context(format!("{pods}\n{}", logs.unwrap_or_default())));
        }
        Ok(())
    }

    /// Returns the value of `--host-interface` for its nodes.
    pub fn host_interface(&self) -> &'static str {
        self.options.cni.host_interface()
    }

    /// Returns a command that opens a shell in the control plane's network.
    pub fn how_to_enter(&self) -> String {
        format!(
            "ip netns exec {} env KUBECONFIG={} PATH={}:\"$PATH\" bash",
            self.name(),
            self.control_plane.admin.display(),
            self.tools.display()
        )
    }
}

/// A pod with the image [`CLIENT`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its `iam.amazonaws.com/role`.
    pub role: Option<&'a str>,
    /// Its service account instead of `default`.
    pub service_account: Option<&'a str>,
    /// The node to run on.
    pub node: Option<&'a str>,
    /// The script that its shell runs instead of waiting.
    pub script: Option<&'a str>,
}

impl ClientPod<'_> {
    fn object(&self) -> Value {
        let annotations = match self.role {
            Some(role) => json!({ "iam.amazonaws.com/role": role }),
            None => json!({}),
        };
        let command = self.script.map(|script| ["sh", "-c", script]);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": self.namespace, "name": self.name, "annotations": annotations,
            },
            "spec": {
                "containers": [{ "name": "client", "image": CLIENT, "command": command }],
                "serviceAccountName": self.service_account,
                "nodeSelector": self.node.map(|node| json!({ "kubernetes.io/hostname": node })),
            },
        })
    }
}

/// Returns a shell in the network of a control plane, with a kubeconfig.
pub(super) fn shell(
    environment: &Environment,
    tools: &Path,
    kubeconfig: &Path,
) -> anyhow::Result<Shell> {
    let home = environment.folder().join("home");
    fs::create_dir_all(&home)?;
    let mut enter = std::process::Command::new("ip");
    enter.args(["netns", "exec", environment.name()]);
    Ok(Shell::new(enter, tools)
        .env("HOME", &home)
        .env("KUBECONFIG", kubeconfig)
        .dir(home))
}

/// Creates the directory of programs for a shell.
pub(super) fn install_tools(environment: &Environment, cluster: &Path) -> anyhow::Result<PathBuf> {
    let folder = environment.folder().join("bin");
    fs::create_dir(&folder)?;
    let kubectl = folder.join("kubectl");
    let script = format!("#!/bin/sh\nexec '{}' kubectl \"$@\"\n", cluster.display());
    fs::write(&kubectl, script)?;
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))?;
    symlink(Rolegate::path()?, folder.join("rolegate"))?;
    Ok(folder)
}
