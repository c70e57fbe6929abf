//! A broker that serves the certificate of the shipped controller, and agents that read the
//! published authorities. Broker and agents run in this process, with stand-ins for AWS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use rolegate_agent::app::{Agent, AgentOptions, Mode};
use rolegate_agent::broker::{BrokerOptions as Reach, ClientAuth};
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::metadata::{ImdsV2, MetadataOptions};
use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions};
use rolegate_broker::identity::AgentAccount;
use rolegate_controller::certificates::SelfSigned;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::metadata::AllowList;
use rolegate_devkit::{Imds, ImdsOptions, Sts};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use rolegate_testkit::{TestPod, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::controller::{ControllerFixture, DEADLINE};

const NAMESPACE: &str = "broker-served";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// The lifetime of a certificate, which is renewed after two thirds of it.
const LIFE: Duration = Duration::from_secs(18);
const SERVING: &str = r#"rolegate_broker_streams{use="serving"}"#;
const ENDED: &str = r#"rolegate_broker_refused_total{reason="ended"}"#;

/// The stand-ins for AWS.
struct Aws {
    imds: Imds,
    sts: Sts,
}

impl Aws {
    async fn start() -> anyhow::Result<Self> {
        let imds = Imds::start(LOOPBACK, ImdsOptions::default()).await?;
        let (id, key) = imds.node_key();
        let options = rolegate_devkit::StsOptions {
            keys: Some([(id, key)].into()),
            ..rolegate_devkit::StsOptions::default()
        };
        let sts = Sts::start(LOOPBACK, options).await?;
        Ok(Self { imds, sts })
    }

    fn sts_options(&self) -> StsOptions {
        let (id, key) = self.imds.node_key();
        let secret = key.secret_access_key;
        let credentials = Credentials::new(id, secret, key.session_token, None, "devkit");
        StsOptions {
            region: Some("eu-west-1".into()),
            endpoint_url: Some(self.sts.url()),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
            ..StsOptions::default()
        }
    }
}

async fn broker(fixture: &ControllerFixture, aws: &Aws) -> anyhow::Result<Broker> {
    let options = BrokerOptions {
        listen: LOOPBACK,
        admin_listen: LOOPBACK,
        ledger_listen: LOOPBACK,
        ledger_entries: 100,
        name: "broker".into(),
        client: rolegate_kube::client::ClientOptions {
            kubeconfig: Some(fixture.cluster.admin_kubeconfig()?),
            ..rolegate_kube::client::ClientOptions::default()
        },
        decisions: DecisionOptions {
            rules: RuleConfig {
                base: Some(BaseArn::parse("arn:aws:iam::123456789012:role/")?),
                ..RuleConfig::default()
            },
            cluster_config: ConfigMode::Off,
            ..DecisionOptions::default()
        },
        agents: AgentAccount {
            namespace: NAMESPACE.into(),
            name: "rolegate-agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        },
        certificate: CertificateSource::SelfSigned,
        secret: (NAMESPACE.into(), "rolegate-broker-tls".into()),
        client_ca: None,
        metadata_addr: aws.imds.addr().to_string(),
        sts: aws.sts_options(),
        connections: 100,
        connections_per_peer: 4,
        kiam: None,
        clock: Clock::system(),
    };
    let broker = Broker::start(options).await?;
    ready(broker.readiness()).await?;
    Ok(broker)
}

/// The agent of a node. The agent is a pod with a token.
async fn agent(
    fixture: &ControllerFixture,
    aws: &Aws,
    broker: &Broker,
    node: &str,
    dir: &Path,
) -> anyhow::Result<Agent> {
    let pod = TestPod::new(NAMESPACE, &format!("agent-{node}"), node)
        .service_account("rolegate-agent")
        .host_network()
        .address(Ipv4Addr::LOCALHOST);
    let pod = fixture.cluster.run_pod(&pod).await?;
    let token = dir.join(node);
    std::fs::write(&token, fixture.cluster.pod_token(&pod, "rolegate").await?)?;
    let reach = Reach {
        host: "localhost".into(),
        port: broker.addresses().agents.port(),
        ca: dir.join("ca.crt"),
        proof: ClientAuth::Token(token),
        node: node.into(),
        clock: Clock::system(),
        stale: Duration::from_secs(180),
    };
    let options = AgentOptions {
        listen: LOOPBACK,
        admin_listen: LOOPBACK,
        runtime_dir: None,
        host_ip: Some(Ipv4Addr::LOCALHOST.into()),
        debug: false,
        kube2iam_metrics: false,
        mode: Mode::Brokered(reach),
        metadata_addr: aws.imds.addr().to_string(),
        metadata: MetadataOptions {
            imds_v2: ImdsV2::Optional,
            allow: AllowList::new(&[])?,
            limits: LimitOptions::default(),
            header_time: Duration::from_secs(10),
        },
        max_staleness: Duration::from_secs(3600),
        container_credentials: None,
        wait: Duration::from_secs(5),
        redirect: None,
        clock: Clock::system(),
    };
    let agent = Agent::start(options).await?;
    ready(agent.readiness()).await?;
    Ok(agent)
}

async fn ready(readiness: &Readiness) -> anyhow::Result<()> {
    let waiting = tokio::time::timeout(DEADLINE, readiness.ready()).await;
    waiting.with_context(|| readiness.report().to_text(true))
}

/// Sends a GET request and returns the status and the whole response.
async fn get(from: Ipv4Addr, to: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect(to).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.get(9..12).context("no answer")?.parse()?;
    Ok((status, answer))
}

/// A pod of node `node` that requests credentials once.
async fn starts(
    fixture: &ControllerFixture,
    agent: &Agent,
    node: u8,
    last: u8,
) -> anyhow::Result<Ipv4Addr> {
    let address = Ipv4Addr::new(127, node, 0, last);
    let pod = TestPod::new(NAMESPACE, &format!("pod-{node}-{last}"), &name(node))
        .role("reader")
        .address(address);
    fixture.cluster.run_pod(&pod).await?;
    asks(agent, address).await?;
    Ok(address)
}

async fn asks(agent: &Agent, pod: Ipv4Addr) -> anyhow::Result<()> {
    let port = agent.addresses().pods.port();
    let path = "/latest/meta-data/iam/security-credentials/reader";
    let (status, answer) = get(pod, (Ipv4Addr::LOCALHOST, port).into(), path).await?;
    ensure!(status == 200 && answer.contains("AccessKeyId"), "{answer}");
    Ok(())
}

fn name(node: u8) -> String {
    format!("{NAMESPACE}-{node}")
}

async fn metric(broker: &Broker, series: &str) -> anyhow::Result<u64> {
    let (_, text) = get(Ipv4Addr::LOCALHOST, broker.addresses().admin, "/metrics").await?;
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    Ok(value.map_or(Ok(0), |value| value.trim().parse())?)
}

/// Writes the content of the ConfigMap to the agents' file, as a kubelet does.
async fn project(maps: Api<ConfigMap>, file: &Path) -> anyhow::Result<()> {
    loop {
        let map = maps.get("rolegate-broker-ca").await?;
        let data = map.data.context("an empty ConfigMap")?;
        std::fs::write(file, data.get("ca.crt").context("no ca.crt")?)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_served_across_the_ends_of_the_certificates_that_the_controller_makes()
-> anyhow::Result<()> {
    let fixture = ControllerFixture::new(NAMESPACE).await;
    let accounts = ["default", "rolegate-agent"];
    for account in accounts {
        let made = fixture.cluster.create_service_account(NAMESPACE, account);
        made.await?;
    }
    let allowed = [("iam.amazonaws.com/allowed-roles", Some(r#"["reader"]"#))];
    let annotated = fixture.cluster.annotate_namespace(NAMESPACE, &allowed);
    annotated.await?;
    let manifest = include_str!("broker_certificate.yaml").replace("broker-certificate", NAMESPACE);
    fixture.cluster.apply_manifest(&manifest).await?;
    for node in 1..=2 {
        let address = Ipv4Addr::new(10, 0, 0, node).into();
        fixture.cluster.create_node(&name(node), address).await?;
    }
    let made = SelfSigned {
        lifetime: LIFE,
        settle: Duration::from_secs(1),
        extra_names: vec!["localhost".into()],
        ..SelfSigned::of_broker(NAMESPACE)
    };
    let controller = fixture.controller_of_broker("only", made).await;
    let admin = || fixture.cluster.admin();
    let (secrets, maps) = (
        Api::<Secret>::namespaced(admin()?, NAMESPACE),
        Api::<ConfigMap>::namespaced(admin()?, NAMESPACE),
    );
    let certificate = async || {
        let secret = secrets.get("rolegate-broker-tls").await?;
        let mut data = secret.data.context("an empty Secret")?;
        data.remove("tls.crt").context("no certificate")
    };
    let first = eventually(DEADLINE, certificate).await?;
    let since = Instant::now();
    eventually(DEADLINE, async || {
        Ok(maps.get("rolegate-broker-ca").await?)
    })
    .await?;

    let aws = Aws::start().await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ca.crt");
    let broker = broker(&fixture, &aws).await?;
    let served = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
        let one = agent(&fixture, &aws, &broker, &name(1), dir.path()).await?;
        let pod = starts(&fixture, &one, 1, 1).await?;
        let answered = AtomicUsize::new(0);
        let load = async {
            loop {
                asks(&one, pod).await?;
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ends = async {
            eventually(DEADLINE, async || {
                ensure!(certificate().await? != first, "the first certificate");
                ensure!(since.elapsed() > LIFE, "the first has not ended");
                Ok(())
            })
            .await?;
            ensure!(metric(&broker, SERVING).await? == 1, "no stream");
            ensure!(metric(&broker, ENDED).await? == 0, "a stream ended");
            starts(&fixture, &one, 1, 2).await?;
            // An agent that starts now trusts the certificate that is served now.
            let two = agent(&fixture, &aws, &broker, &name(2), dir.path()).await?;
            starts(&fixture, &two, 2, 1).await?;
            anyhow::Ok(())
        };
        tokio::select! {
            failed = load => failed,
            ended = ends => ended,
        }?;
        ensure!(
            answered.load(Ordering::Relaxed) > 10,
            "no client made a request"
        );
        anyhow::Ok(())
    };
    tokio::select! {
        failed = project(maps, &file) => failed,
        served = served => served,
    }?;
    controller.stop(Duration::from_secs(10)).await;
    Ok(())
}
