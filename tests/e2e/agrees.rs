//! `rolegate policy explain` and agents agree for every pod of the table of cases: with flags, with
//! a RolegateConfig, and behind a broker. The API server is real; agents and brokers are the real
//! binary on loopback, where each pod has its own address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rolegate_devkit::{Imds, ImdsOptions, Sts, StsOptions};
use rolegate_testkit::cases::{self, AgentResult, Case, World};
use rolegate_testkit::{Cluster, Rolegate, TestPod, eventually, repository};
use serde_json::{Value, json};

use crate::ask::CREDENTIALS;
use crate::fixture::DEADLINE;
use crate::loopback::connect;

const NODE: &str = "node-a";
const HOME: &str = "rolegate-system";
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// The address of the agent's own pod, which is in the node's network.
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The number of concurrent commands.
const AT_ONCE: usize = 3;

/// The source of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// The agents' flags.
    Flags,
    /// The RolegateConfig.
    Config,
    /// The flags of the agents' broker.
    Broker,
}

/// A cluster with one node and the surroundings of its agent.
struct Fixture {
    cluster: Cluster,
    kubeconfig: PathBuf,
    imds: Imds,
    sts: Sts,
    dir: tempfile::TempDir,
    /// True if rolegate's kinds are installed.
    has_kinds: bool,
    /// The namespaces that the harness created.
    namespaces: BTreeSet<String>,
}

/// A running pod of a case.
struct Running {
    case: String,
    namespace: String,
    name: String,
    address: Ipv4Addr,
    expected: AgentResult,
}

impl Fixture {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.create_node(NODE, HOST.into()).await?;
        let imds = Imds::start(ANY, ImdsOptions::default()).await?;
        let sts = StsOptions {
            keys: Some([imds.node_key()].into()),
            ..StsOptions::default()
        };
        let dir = tempfile::tempdir_in("/dev/shm")?;
        std::fs::write(dir.path().join("ca.crt"), cluster.ca_pem())?;
        let mut fixture = Self {
            kubeconfig: cluster.admin_kubeconfig()?,
            cluster,
            imds,
            sts: Sts::start(ANY, sts).await?,
            dir,
            has_kinds: false,
            namespaces: BTreeSet::new(),
        };
        fixture.namespace(HOME, &json!({})).await?;
        let home = &fixture.cluster;
        home.create_service_account(HOME, "rolegate-agent").await?;
        Ok(fixture)
    }

    /// Creates or changes a namespace, with exactly this metadata.
    async fn namespace(&mut self, name: &str, metadata: &Value) -> anyhow::Result<()> {
        let mut metadata = metadata.clone();
        metadata["name"] = name.into();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.cluster.apply_manifest(&object.to_string()).await?;
        self.cluster.create_service_account(name, "default").await?;
        self.namespaces.insert(name.to_owned());
        Ok(())
    }

    async fn install_kinds(&mut self) -> anyhow::Result<()> {
        let definitions = repository().join("deploy/crds.yaml");
        self.cluster.apply_file(&definitions).await?;
        let requests = self.cluster.requests()?;
        for plural in ["rolegrants", "rolegateconfigs"] {
            let path = format!("/apis/rolegate.dev/v1alpha1/{plural}");
            eventually(DEADLINE, async || {
                requests.get(&path).await?.object().map(drop)
            })
            .await?;
        }
        self.has_kinds = true;
        Ok(())
    }

    /// Replaces the namespaces, grants and policies of the previous world.
    async fn enter(&mut self, world: &World, others: &[&Case]) -> anyhow::Result<()> {
        self.leave().await?;
        let described: Vec<_> = of_kind(world, "Namespace").collect();
        let is_described = |name: &str| {
            let mut names = described.iter();
            names.any(|one| one["metadata"]["name"] == name)
        };
        let used = others.iter().map(|case| namespace_of(case).to_owned());
        let used: BTreeSet<_> = used.chain(self.namespaces.iter().cloned()).collect();
        for name in used.iter().filter(|name| !is_described(name)) {
            self.namespace(name, &json!({})).await?;
        }
        for object in described {
            let name = object["metadata"]["name"].as_str().context("no name")?;
            self.namespace(name, &object["metadata"]).await?;
        }
        for object in of_kind(world, "ConfigMap") {
            let namespace = object["metadata"]["namespace"].as_str();
            let namespace = namespace.context("a ConfigMap without namespace")?;
            if !self.namespaces.contains(namespace) {
                self.namespace(namespace, &json!({})).await?;
            }
            self.cluster.apply_manifest(&object.to_string()).await?;
        }
        for object in of_kind(world, "RoleGrant") {
            self.cluster.apply_manifest(&object.to_string()).await?;
        }
        Ok(())
    }

    /// Deletes the rules and pods.
    async fn leave(&self) -> anyhow::Result<()> {
        let requests = self.cluster.requests()?;
        let mut paths: Vec<_> = self
            .namespaces
            .iter()
            .map(|name| format!("/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0"))
            .collect();
        paths.push("/api/v1/namespaces/opa/configmaps".into());
        if self.has_kinds {
            for plural in ["rolegrants", "rolegateconfigs"] {
                paths.push(format!("/apis/rolegate.dev/v1alpha1/{plural}"));
            }
        }
        for path in paths {
            requests.delete(&path).await?.object()?;
        }
        Ok(())
    }

    /// Runs the pods of cases for which an agent decides.
    async fn run_pods(&self, number: u8, cases: &[&Case]) -> anyhow::Result<Vec<Running>> {
        let requests = self.cluster.requests()?;
        let mut running = Vec::new();
        for (place, case) in cases.iter().enumerate() {
            let told = format!("{}, {}", case.file, case.name);
            let mut pod = case.subject().clone();
            let name = format!("pod-{place}");
            let namespace = namespace_of(case).to_owned();
            let metadata = pod["metadata"].as_object_mut().context("no metadata")?;
            metadata.retain(|field, _| field == "labels" || field == "annotations");
            metadata.insert("name".into(), name.as_str().into());
            pod["spec"]["nodeName"] = NODE.into();
            pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
            let account = pod["spec"]["serviceAccountName"].as_str();
            let account = account.unwrap_or("default").to_owned();
            self.cluster
                .create_service_account(&namespace, &account)
                .await?;
            let path = format!("/api/v1/namespaces/{namespace}/pods");
            let made = requests.post(&path, &pod).await?.object();
            made.with_context(|| told.clone())?;
            let address = Ipv4Addr::new(127, 1, number, u8::try_from(place + 1)?);
            self.cluster
                .set_pod_status(&namespace, &name, "Running", &[address.into()])
                .await?;
            running.push(Running {
                case: told,
                namespace,
                name,
                address,
                expected: case.expect.agent.context("a case without door")?,
            });
        }
        Ok(running)
    }

    /// Creates the workload that runs a process with these arguments.
    async fn workload(&self, kind: &str, name: &str, arguments: &[String]) -> anyhow::Result<()> {
        let labels = json!({"app.kubernetes.io/name": name});
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": HOME, "labels": labels},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": "rolegate:1",
                    // The process's environment does not affect decisions.
                    "args": arguments,
                    "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}]}}},
        });
        self.cluster.apply_manifest(&object.to_string()).await?;
        Ok(())
    }

    /// Starts a process with these arguments and those of its surroundings.
    fn spawn(&self, arguments: &[String], more: &[String]) -> anyhow::Result<Rolegate> {
        let mut command = Rolegate::command()?;
        command
            .args(arguments)
            .args(more)
            .env("AWS_ENDPOINT_URL", self.sts.url())
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.imds.url())
            .env("AWS_REGION", "eu-west-1");
        Rolegate::spawn_command(&command)
    }

    fn kubeconfig(&self) -> String {
        format!("--kubeconfig={}", self.kubeconfig.display())
    }

    /// Starts an agent, waits until it is ready, and returns the port for pods.
    async fn agent(
        &self,
        arguments: &[String],
        more: &[String],
    ) -> anyhow::Result<(Rolegate, u16)> {
        let mut own = vec![
            "--app-port=0".to_owned(),
            "--metrics-address=127.0.0.1:0".to_owned(),
            format!("--node={NODE}"),
            format!("--metadata-addr={}", self.imds.addr()),
            // No other agent may take over the sockets.
            "--runtime-dir=".to_owned(),
        ];
        own.extend(more.iter().cloned());
        let mut agent = self.spawn(arguments, &own)?;
        let line = agent.wait_for_line("pods=", DEADLINE).await?;
        let (pods, admin) = (port(&line, "pods=")?, port(&line, "admin=")?);
        ready(&mut agent, admin).await?;
        Ok((agent, pods))
    }

    /// Starts a broker, waits until it is ready, and returns its URL.
    async fn broker(&self, arguments: &[String]) -> anyhow::Result<(Rolegate, String)> {
        let (certificate, key) = self.cluster.serving_pair("broker", &["localhost"])?;
        let own = [
            "--listen-address=127.0.0.1:0".to_owned(),
            "--metrics-address=127.0.0.1:0".to_owned(),
            "--ledger-address=127.0.0.1:0".to_owned(),
            "--certificate=files".to_owned(),
            format!("--tls-cert={}", certificate.display()),
            format!("--tls-key={}", key.display()),
            format!("--metadata-addr={}", self.imds.addr()),
            self.kubeconfig(),
        ];
        let mut broker = self.spawn(arguments, &own)?;
        let line = broker.wait_for_line("agents=", DEADLINE).await?;
        ready(&mut broker, port(&line, "admin=")?).await?;
        Ok((
            broker,
            format!("https://localhost:{}", port(&line, "agents=")?),
        ))
    }

    /// Compares the explanation with an agent's response, for all pods.
    async fn compare(
        &self,
        setup: Setup,
        port: u16,
        pods: &[Running],
    ) -> anyhow::Result<Vec<String>> {
        let compared = stream::iter(pods).map(|pod| async move {
            let answered = answered(pod.address, port).await?;
            let (decision, source) = self.explained(pod).await?;
            let wanted = match setup {
                Setup::Flags | Setup::Broker => "Workloads",
                Setup::Config => "RolegateConfig",
            };
            let expected = match pod.expected {
                AgentResult::Allow => "allowed",
                AgentResult::Deny => "denied",
                AgentResult::None => "noRole",
            };
            let told = format!("{setup:?}, {}: explained as {decision} by {source}, answered {answered}, expected {expected}", pod.case);
            let is_same = decision == answered && answered == expected && source == wanted;
            anyhow::Ok((!is_same).then_some(told))
        });
        let wrong: Vec<_> = compared.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(wrong.into_iter().flatten().collect())
    }

    /// Returns the explained decision, and the kind of source of the rules.
    async fn explained(&self, pod: &Running) -> anyhow::Result<(String, String)> {
        let (what, kubeconfig) = (format!("pod/{}", pod.name), self.kubeconfig());
        let explain = [
            "policy",
            "explain",
            &what,
            "-n",
            &pod.namespace,
            "-ojson",
            &kubeconfig,
        ];
        let output = Rolegate::output(&explain).await?;
        let explained: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((
            text(&explained["decision"]),
            text(&explained["rules"]["source"]["kind"]),
        ))
    }
}

fn of_kind<'a>(world: &'a World, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    world
        .documents
        .iter()
        .filter(move |one| one["kind"] == kind)
}

fn namespace_of(case: &Case) -> &str {
    match case.namespace() {
        "" => "default",
        namespace => namespace,
    }
}

fn port(line: &str, name: &str) -> anyhow::Result<u16> {
    let (_, rest) = line.split_once(name).context("no port")?;
    let address = rest.split_whitespace().next().context("no port")?;
    Ok(address.rsplit_once(':').context("no port")?.1.parse()?)
}

async fn ready(process: &mut Rolegate, admin: u16) -> anyhow::Result<()> {
    process
        .until(DEADLINE, async || {
            let ready = connect(HOST, admin)?.request("GET", "/readyz", &[])?;
            ensure!(ready.status == 200, "{ready:?}");
            Ok(())
        })
        .await
}

/// Returns the agent's response to a pod, in the format of explanations.
async fn answered(address: Ipv4Addr, port: u16) -> anyhow::Result<&'static str> {
    eventually(DEADLINE, async || {
        let ask = move || connect(address, port)?.request("GET", CREDENTIALS, &[]);
        let answer = tokio::task::spawn_blocking(ask).await??;
        match answer.status {
            200 => Ok("allowed"),
            403 => Ok("denied"),
            404 if answer.body.contains("has no role") => Ok("noRole"),
            _ => bail!("{answer:?}"),
        }
    })
    .await
}

/// Returns the flags that correspond to a world's configuration.
fn flags_of(world: &World) -> anyhow::Result<Vec<String>> {
    let config = of_kind(world, "RolegateConfig")
        .next()
        .context("a world without configuration")?;
    let spec = &config["spec"];
    let mut flags = Vec::new();
    for (field, flag) in [
        ("baseRoleArn", "base-role-arn"),
        ("defaultRole", "default-role"),
        ("namespaceRestrictionFormat", "namespace-restriction-format"),
        (
            "namespaceRestrictionsDefault",
            "namespace-restrictions-default",
        ),
    ] {
        if let Some(value) = spec[field].as_str() {
            flags.push(format!("--{flag}={value}"));
        }
    }
    for role in spec["reservedRoles"].as_array().into_iter().flatten() {
        let role = role.as_str().context("no role")?;
        flags.push(format!("--reserved-role={role}"));
    }
    for (layer, usual) in [("namespace", "enforce"), ("grants", "off"), ("rego", "off")] {
        let mode = spec["layers"][layer].as_str().unwrap_or(usual);
        flags.push(format!("--layer={layer}={mode}"));
    }
    Ok(flags)
}

/// Returns true if an agent serves the pod of a case: mirror pods and pods on the host network have no
/// address of their own.
fn is_served(case: &Case) -> bool {
    let pod = case.subject();
    let is_mirror = pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some();
    !is_mirror && pod["spec"]["hostNetwork"] != true
}

fn arguments(command: &str, flags: &[String]) -> Vec<String> {
    std::iter::once(command.to_owned())
        .chain(flags.iter().cloned())
        .collect()
}

/// Runs the pods of one world with the configuration in `setup`, and compares.
async fn tried(
    fixture: &Fixture,
    world: &World,
    setup: Setup,
    pods: &[Running],
) -> anyhow::Result<Vec<String>> {
    let mut flags = flags_of(world)?;
    if fixture.has_kinds {
        // The definition is installed without an object: by default all requests would be denied.
        flags.push("--cluster-config=off".into());
    }
    match setup {
        Setup::Flags => {
            let arguments = arguments("agent", &flags);
            fixture
                .workload("DaemonSet", "rolegate-agent", &arguments)
                .await?;
            let (_agent, port) = fixture.agent(&arguments, &[fixture.kubeconfig()]).await?;
            fixture.compare(setup, port, pods).await
        }
        Setup::Config => {
            for config in of_kind(world, "RolegateConfig") {
                fixture.cluster.apply_manifest(&config.to_string()).await?;
            }
            let arguments = arguments("agent", &[]);
            fixture
                .workload("DaemonSet", "rolegate-agent", &arguments)
                .await?;
            let (_agent, port) = fixture.agent(&arguments, &[fixture.kubeconfig()]).await?;
            fixture.compare(setup, port, pods).await
        }
        Setup::Broker => {
            let arguments = arguments("broker", &flags);
            fixture
                .workload("Deployment", "rolegate-broker", &arguments)
                .await?;
            let (_broker, url) = fixture.broker(&arguments).await?;
            let agent = TestPod::new(HOME, &format!("agent-{}", world.name), NODE)
                .service_account("rolegate-agent")
                .host_network()
                .address(HOST);
            let agent = fixture.cluster.run_pod(&agent).await?;
            let token = fixture.dir.path().join("token");
            std::fs::write(&token, fixture.cluster.pod_token(&agent, "rolegate").await?)?;
            // Rule flags of agents with a broker have no effect.
            let arguments = [
                "agent".to_owned(),
                format!("--broker={url}"),
                "--layer=namespace=enforce,grants=enforce".to_owned(),
            ];
            fixture
                .workload("DaemonSet", "rolegate-agent", &arguments)
                .await?;
            let own = [
                format!(
                    "--broker-ca={}",
                    fixture.dir.path().join("ca.crt").display()
                ),
                format!("--broker-token={}", token.display()),
            ];
            let (_agent, port) = fixture.agent(&arguments, &own).await?;
            fixture.compare(setup, port, pods).await
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_agrees_with_every_agent() -> anyhow::Result<()> {
    let cases = cases::load_all()?;
    let served = cases
        .iter()
        .filter(|case| case.kind() == "Pod" && case.expect.agent.is_some());
    let served: Vec<_> = served.filter(|case| is_served(case)).collect();
    ensure!(served.len() > 120, "only {} pods", served.len());
    let mut worlds: Vec<Arc<World>> = Vec::new();
    for case in &served {
        if worlds.iter().all(|world| world.name != case.world.name) {
            worlds.push(case.world.clone());
        }
    }
    let mut fixture = Fixture::start().await?;
    let mut wrong = Vec::new();
    let mut number = 0;
    // Worlds without grants are also tested without rolegate's kinds, as in the simplest
    // installation.
    for installs_kinds in [false, true] {
        if installs_kinds {
            fixture.install_kinds().await?;
        }
        for world in &worlds {
            let has_grants = of_kind(world, "RoleGrant").next().is_some();
            let setups = match (installs_kinds, has_grants) {
                (false, true) => continue,
                (false, false) => &[Setup::Flags, Setup::Broker][..],
                (true, false) => &[Setup::Config],
                (true, true) => &[Setup::Flags, Setup::Broker, Setup::Config],
            };
            number += 1;
            let of_world = served.iter().filter(|case| case.world.name == world.name);
            let of_world: Vec<&Case> = of_world.copied().collect();
            let context = || format!("in the world {}", world.name);
            fixture
                .enter(world, &of_world)
                .await
                .with_context(context)?;
            let pods = fixture
                .run_pods(number, &of_world)
                .await
                .with_context(context)?;
            for setup in setups {
                let differ = tried(&fixture, world, *setup, &pods).await;
                wrong.extend(differ.with_context(context)?);
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
