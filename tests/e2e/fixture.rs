//! The surroundings of an agent: a lab whose node has a metadata service and a role, an API server
//! that the agent calls with the rights of the shipped manifest, and STS.

use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_devkit::{Imds, ImdsOptions, NODE_ACCESS_KEY_ID, NODE_SECRET_MARKER};
use rolegate_testkit::lab::{self, Lab, Namespace, PodLink};
use rolegate_testkit::{Cluster, Forward, Rolegate, TestPod, eventually};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::ask::{self, ADMIN, CREDENTIALS, Reply};
use crate::shim::Sts;

/// Timeout for events on a machine that may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The lab's node with everything that an agent needs. Tests in one cluster use different node
/// names, which are also the prefixes of their namespaces.
pub(crate) struct AgentFixture {
    pub(crate) node: String,
    pub(crate) lab: Lab,
    pub(crate) imds: Imds,
    pub(crate) sts: Sts,
    kubeconfig: PathBuf,
    dir: TempDir,
    _forwards: [Forward; 2],
}

/// A pod's network namespace, from which STS can be reached.
pub(crate) struct Pod {
    pod: lab::Pod,
    _sts: Forward,
}

impl Pod {
    /// Creates a pod on the lab's node, whose runtime has its files in `dir`.
    pub(crate) fn new(lab: &Lab, address: &str, sts: &Sts, dir: &Path) -> anyhow::Result<Self> {
        let pod = lab.pod(address, PodLink::Veth)?;
        symlink(pod.path(), dir.join("netns").join(pod.name()))?;
        Ok(Self {
            _sts: Forward::new(&pod, sts.port())?,
            pod,
        })
    }
}

impl Deref for Pod {
    type Target = lab::Pod;

    fn deref(&self) -> &lab::Pod {
        &self.pod
    }
}

/// Starts the node's metadata service in the lab, at the destination of packets that are not
/// redirected.
pub(crate) async fn start_imds(lab: &Lab) -> anyhow::Result<Imds> {
    start_imds_with(lab, ImdsOptions::default()).await
}

/// Does the same with these `options`.
pub(crate) async fn start_imds_with(lab: &Lab, options: ImdsOptions) -> anyhow::Result<Imds> {
    let runtime = Handle::current();
    let address = "[::]:80".parse()?;
    let start = || runtime.block_on(Imds::start(address, options));
    Ok(lab.imds().run(start)??)
}

/// Returns a command without the developer's environment.
pub(crate) fn clean(netns: &Namespace, program: &Path) -> Command {
    let mut command = netns.command(&program.display().to_string());
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

impl AgentFixture {
    /// Creates a harness for the node `node` of `cluster`.
    pub(crate) async fn new(node: &str, cluster: &Cluster) -> anyhow::Result<Self> {
        cluster.install(&["rolegate-agent"]).await?;
        let token = cluster
            .service_account_token("rolegate-system", "rolegate-agent")
            .await?;
        let lab = Lab::new()?;
        cluster.create_node(node, lab::NODE_V4.into()).await?;
        let sts = Sts::start().await?;
        let dir = tempfile::tempdir()?;
        for folder in ["netns", "runtime", "results"] {
            std::fs::create_dir(dir.path().join(folder))?;
        }
        Ok(Self {
            node: node.to_owned(),
            imds: start_imds(&lab).await?,
            kubeconfig: cluster.kubeconfig_for_token(node, &token)?,
            _forwards: [
                Forward::new(lab.node(), cluster.port())?,
                Forward::new(lab.node(), sts.port())?,
            ],
            sts,
            lab,
            dir,
        })
    }

    /// Returns the full name of one of this harness's namespaces.
    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.node)
    }

    /// Creates a pod's network namespace.
    pub(crate) fn pod(&self, address: &str) -> anyhow::Result<Pod> {
        Pod::new(&self.lab, address, &self.sts, self.dir.path())
    }

    /// Creates a pod on the node's bridge, for which the runtime has a namespace file but no record
    /// yet.
    pub(crate) fn bridged(&self, address: &str) -> anyhow::Result<lab::Pod> {
        let pod = self.lab.pod(address, PodLink::Bridge)?;
        symlink(pod.path(), self.dir.path().join("netns").join(pod.name()))?;
        Ok(pod)
    }

    /// Returns the directory of the container runtime's records.
    pub(crate) fn results(&self) -> PathBuf {
        self.dir.path().join("results")
    }

    /// Returns the object of a pod in one of this harness's namespaces.
    pub(crate) fn object(&self, namespace: &str, name: &str, pod: &lab::Pod) -> TestPod {
        TestPod::new(&self.namespace(namespace), name, &self.node)
            .address(pod.v4)
            .address(pod.v6)
    }

    /// Returns the environment of an agent on this node. It detects everything about AWS from the
    /// node, as on a real one.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let folder = |name: &str| self.dir.path().join(name).display().to_string();
        vec![
            ("AWS_ENDPOINT_URL", self.sts.url()),
            ("ROLEGATE_KUBECONFIG", self.kubeconfig.display().to_string()),
            ("ROLEGATE_RUNTIME_DIR", folder("runtime")),
            ("ROLEGATE_REDIRECT_CHECK_DIR", folder("netns")),
            ("ROLEGATE_CNI_RESULTS_DIR", folder("results")),
        ]
    }

    /// Starts an agent with the flags of the shipped manifest and these.
    pub(crate) fn agent(&self, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let node = format!("--node={}", self.node);
        let shipped = [
            "agent",
            "--host-interface=eni+",
            "--auto-discover-base-arn",
            "--host-ip=10.0.0.1",
            "--host-ipv6=fd10::1",
            &node,
        ];
        self.spawn(shipped.iter().chain(flags))
    }

    /// Starts `rolegate` with exactly these arguments on the node.
    pub(crate) fn spawn<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a &'a str>,
    ) -> anyhow::Result<Rolegate> {
        let mut command = self
            .lab
            .node()
            .command(&Rolegate::path()?.display().to_string());
        command.args(arguments).envs(self.environment());
        Rolegate::spawn_command(&command)
    }

    /// Starts an agent that redirects with nftables, and waits until it is ready.
    pub(crate) async fn ready_agent(&self, flags: &[&str]) -> anyhow::Result<Rolegate> {
        let flags: Vec<&str> = ["--redirect=nftables"]
            .iter()
            .chain(flags)
            .copied()
            .collect();
        let mut agent = self.agent(&flags)?;
        self.ready(&mut agent).await?;
        Ok(agent)
    }

    /// Waits until the agent is ready.
    pub(crate) async fn ready(&self, agent: &mut Rolegate) -> anyhow::Result<()> {
        agent
            .until(DEADLINE, async || {
                let reply = self.admin("/readyz")?;
                ensure!(reply.status == 200, "{}", reply.body);
                Ok(())
            })
            .await
    }

    /// Sends a request to the agent's operators' port.
    pub(crate) fn admin(&self, path: &str) -> anyhow::Result<Reply> {
        ask::get_at(self.lab.node(), ADMIN, path)
    }

    /// Returns true if the node's metadata service received a request for such a path.
    pub(crate) fn reached(&self, path: &str) -> bool {
        self.asked_for(path) > 0
    }

    /// Returns the number of requests for such a path that the node's metadata service received.
    pub(crate) fn asked_for(&self, path: &str) -> usize {
        let requests = self.imds.requests();
        requests
            .iter()
            .filter(|request| request.path.contains(path))
            .count()
    }
}

/// Runs `rolegate` with these arguments in a namespace until it exits.
pub(crate) fn rolegate(netns: &Namespace, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = clean(netns, &Rolegate::path()?).args(arguments).output();
    output.context("rolegate cannot be run")
}

/// Returns the document with the credentials of the pod's role.
pub(crate) fn credentials(pod: &Namespace, role: &str) -> anyhow::Result<serde_json::Value> {
    let reply = ask::get(pod, &format!("{CREDENTIALS}{role}"))?;
    ensure!(reply.status == 200, "{reply:?}");
    let document = reply.json()?;
    ensure!(document["Code"] == "Success", "{document}");
    Ok(document)
}

/// Waits until the pod gets the role's credentials; returns the role of their session according to
/// STS.
pub(crate) async fn served(
    fixture: &AgentFixture,
    pod: &Namespace,
    role: &str,
) -> anyhow::Result<String> {
    let document = eventually(DEADLINE, async || credentials(pod, role)).await?;
    let access_key = document["AccessKeyId"].as_str().context("no access key")?;
    fixture.sts.role_of(access_key)
}

/// Fails if a text contains one of the node's own secrets.
pub(crate) fn no_secrets(text: &str) -> anyhow::Result<()> {
    for secret in [NODE_SECRET_MARKER, NODE_ACCESS_KEY_ID] {
        ensure!(!text.contains(secret), "the node's secrets in {text}");
    }
    Ok(())
}
