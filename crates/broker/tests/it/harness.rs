//! The test harness: stand-ins for STS, metadata and the API server, brokers that use them, agents
//! with nothing but a broker, and pods that send requests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rolegate_agent::app::{Agent, AgentOptions, Mode};
use rolegate_agent::broker::{BrokerOptions as AgentBroker, ClientAuth};
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::metadata::{ImdsV2, MetadataOptions};
use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions};
use rolegate_broker::identity::AgentAccount;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::metadata::AllowList;
use rolegate_devkit::{Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Pod, Sts};
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::{ClientTls, TlsFiles};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

pub(crate) const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";
pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Upper limit for every wait of a test.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// The stand-ins and the certificate authorities.
pub(crate) struct TestBrokers {
    pub(crate) sts: Sts,
    pub(crate) imds: Imds,
    pub(crate) kube: KubeApi,
    clock: Clock,
    folder: TempDir,
    authority: Authority,
}

/// A certificate authority.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { params, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }
}

/// Returns the address of pod `n` on node `node`.
pub(crate) fn address(node: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, node, 0, n)
}

/// Returns a running pod of namespace `default` on node `node-N`, with a role.
pub(crate) fn pod(name: &str, node: u8, n: u8, role: &str) -> Pod {
    Pod::new("default", name)
        .node(&format!("node-{node}"))
        .ip(&address(node, n).to_string())
        .annotation("iam.amazonaws.com/role", role)
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn broker_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn node_uri(node: &str) -> SanType {
    let uri = format!("{}{node}", rolegate_broker::service::NODE_URI);
    SanType::URI(uri.try_into().unwrap())
}

/// Adds the pods `one` (node 1, role reader) and `two` (node 2, role writer) to a cluster.
pub(crate) fn furnish(kube: &KubeApi) {
    kube.put_namespace(Namespace::new("default").annotation(
        "iam.amazonaws.com/allowed-roles",
        r#"["reader*", "writer*"]"#,
    ));
    kube.put_pod(pod("one", 1, 1, "reader"));
    kube.put_pod(pod("two", 2, 1, "writer"));
}

impl TestBrokers {
    /// Creates a harness with the pods `one` (node 1, role reader) and `two` (node 2, role writer).
    pub(crate) async fn new() -> Self {
        Self::with_clock(Clock::system()).await
    }

    /// Creates a harness whose brokers and agents use this clock.
    pub(crate) async fn with_clock(clock: Clock) -> Self {
        let kube = KubeApi::start(LOOPBACK, KubeApiOptions::default())
            .await
            .unwrap();
        let options = ImdsOptions {
            account: "123456789012".into(),
            ..ImdsOptions::default()
        };
        let imds = Imds::start(LOOPBACK, options).await.unwrap();
        let (id, key) = imds.node_key();
        let options = rolegate_devkit::StsOptions {
            keys: Some([(id, key)].into()),
            ..rolegate_devkit::StsOptions::default()
        };
        let sts = Sts::start(LOOPBACK, options).await.unwrap();
        furnish(&kube);
        let harness = Self {
            sts,
            imds,
            kube,
            clock,
            folder: TempDir::new().unwrap(),
            authority: Authority::new(),
        };
        harness.trust(&[&harness.authority]);
        harness
    }

    /// Makes agents and brokers trust these authorities from now on.
    pub(crate) fn trust(&self, authorities: &[&Authority]) {
        let pem: String = authorities.iter().map(|it| it.pem()).collect();
        std::fs::write(self.path("ca.pem"), pem).unwrap();
    }

    /// Returns the clock of brokers and agents.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Issues a key pair by the default authority.
    fn pair(&self, name: &str, params: CertificateParams) -> TlsFiles {
        self.pair_of(&self.authority, name, params)
    }

    /// Issues a key pair by this authority, in files with this name.
    fn pair_of(&self, authority: &Authority, name: &str, params: CertificateParams) -> TlsFiles {
        let issuer = Issuer::from_params(&authority.params, &authority.key);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let files = TlsFiles {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// Issues the certificate of a node's agent.
    pub(crate) fn node_pair(&self, node: &str) -> TlsFiles {
        let mut params = client_params();
        params.subject_alt_names = vec![node_uri(node)];
        self.pair(node, params)
    }

    /// Issues a node's certificate that expires after this time.
    pub(crate) fn node_pair_for(&self, node: &str, time: Duration) -> TlsFiles {
        self.node_pair_of(&self.authority, node, time)
    }

    /// Issues a node's certificate by this authority.
    pub(crate) fn node_pair_of(
        &self,
        authority: &Authority,
        node: &str,
        time: Duration,
    ) -> TlsFiles {
        let mut params = client_params();
        params.subject_alt_names = vec![node_uri(node)];
        self.pair_for(authority, node, params, time)
    }

    /// Issues a certificate that names no node and expires after this time.
    pub(crate) fn client_pair_for(&self, name: &str, time: Duration) -> TlsFiles {
        self.pair_for(&self.authority, name, client_params(), time)
    }

    fn pair_for(
        &self,
        authority: &Authority,
        name: &str,
        mut params: CertificateParams,
        time: Duration,
    ) -> TlsFiles {
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + self.now() + time;
        self.pair_of(authority, name, params)
    }

    /// Issues the certificate of broker `name`. Its validity is relative to now.
    pub(crate) fn broker_pair_of(
        &self,
        authority: &Authority,
        name: &str,
        (from, until): (Duration, Duration),
    ) -> TlsFiles {
        let mut params = broker_params();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + self.now() + from;
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + self.now() + until;
        self.pair_of(authority, name, params)
    }

    /// Returns the time since the Unix epoch.
    fn now(&self) -> Duration {
        let now = self.clock.now().as_second();
        Duration::from_secs(u64::try_from(now).unwrap())
    }

    /// Issues a certificate that names no node.
    pub(crate) fn client_pair(&self, name: &str) -> TlsFiles {
        self.pair(name, client_params())
    }

    /// Returns the TLS configuration of a client.
    pub(crate) fn tls(&self, pair: Option<TlsFiles>) -> ClientTls {
        ClientTls {
            ca: self.path("ca.pem"),
            pair,
            // The client presents its certificate whatever the time.
            clock: Clock::system(),
        }
    }

    /// Starts a broker.
    pub(crate) async fn broker(&self, name: &str) -> Broker {
        self.start(self.broker_options(name)).await
    }

    /// Starts a broker and waits until it is ready.
    pub(crate) async fn start(&self, options: BrokerOptions) -> Broker {
        let broker = Broker::start(options).await.unwrap();
        let ready = broker.readiness().ready();
        if tokio::time::timeout(TEST_TIMEOUT, ready).await.is_err() {
            panic!("{}", broker.readiness().report().to_text(true));
        }
        broker
    }

    pub(crate) fn broker_options(&self, name: &str) -> BrokerOptions {
        let pair = self.pair(name, broker_params());
        let (id, key) = self.imds.node_key();
        let credentials =
            Credentials::new(id, key.secret_access_key, key.session_token, None, "devkit");
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        BrokerOptions {
            listen: LOOPBACK,
            admin_listen: LOOPBACK,
            ledger_listen: LOOPBACK,
            ledger_entries: 100,
            name: name.into(),
            client: ClientOptions {
                api_server: Some(self.kube.url()),
                ..ClientOptions::default()
            },
            decisions: DecisionOptions {
                rules: RuleConfig {
                    base: Some(base),
                    ..RuleConfig::default()
                },
                cluster_config: ConfigMode::Off,
                engine: EngineOptions::for_cluster(64),
                ..DecisionOptions::default()
            },
            agents: AgentAccount {
                namespace: "rolegate-system".into(),
                name: "rolegate-agent".into(),
                audience: "rolegate".into(),
                check_address: true,
            },
            certificate: CertificateSource::Files(pair),
            secret: ("rolegate-system".into(), "rolegate-broker-tls".into()),
            client_ca: Some(self.path("ca.pem")),
            metadata_addr: self.imds.addr().to_string(),
            sts: StsOptions {
                region: Some("eu-west-1".into()),
                endpoint_url: Some(self.sts.url()),
                credentials: Some(SharedCredentialsProvider::new(credentials)),
                ..StsOptions::default()
            },
            // An eighth is for unauthenticated peers: more than one address may have.
            connections: 200,
            connections_per_peer: 4,
            kiam: None,
            clock: self.clock.clone(),
        }
    }

    /// Returns the broker options of an agent on `node` with this key pair.
    pub(crate) fn reach(&self, broker: SocketAddr, node: &str, pair: TlsFiles) -> AgentBroker {
        AgentBroker {
            host: "localhost".into(),
            port: broker.port(),
            ca: self.path("ca.pem"),
            proof: ClientAuth::Certificate(pair),
            node: node.into(),
            stale: Duration::from_secs(180),
            clock: self.clock.clone(),
        }
    }

    /// Starts the agent of `node`, connected to the broker only.
    pub(crate) async fn agent(&self, broker: &Broker, node: &str) -> Agent {
        self.agent_at(broker.addresses().agents, node).await
    }

    /// Starts an agent, given a broker's address.
    pub(crate) async fn agent_at(&self, broker: SocketAddr, node: &str) -> Agent {
        let reach = self.reach(broker, node, self.node_pair(node));
        self.agent_of(reach, self.clock.clone()).await
    }

    /// Starts an agent with its own clock.
    pub(crate) async fn agent_of(&self, reach: AgentBroker, clock: Clock) -> Agent {
        let agent = self.start_agent(reach, clock).await;
        let ready = agent.readiness().ready();
        if tokio::time::timeout(TEST_TIMEOUT, ready).await.is_err() {
            panic!("{}", agent.readiness().report().to_text(true));
        }
        agent
    }

    /// Starts an agent that may never become ready.
    pub(crate) async fn unready_agent(&self, broker: AgentBroker) -> Agent {
        self.start_agent(broker, self.clock.clone()).await
    }

    /// Starts an agent that may never become ready, with its own clock.
    pub(crate) async fn unready_agent_with(&self, broker: AgentBroker, clock: Clock) -> Agent {
        self.start_agent(broker, clock).await
    }

    async fn start_agent(&self, broker: AgentBroker, clock: Clock) -> Agent {
        Agent::start(self.agent_options(broker, clock))
            .await
            .unwrap()
    }

    pub(crate) fn agent_options(&self, mut broker: AgentBroker, clock: Clock) -> AgentOptions {
        broker.clock = clock.clone();
        AgentOptions {
            listen: LOOPBACK,
            admin_listen: LOOPBACK,
            runtime_dir: None,
            host_ip: Some(Ipv4Addr::LOCALHOST.into()),
            debug: true,
            kube2iam_metrics: false,
            mode: Mode::Brokered(broker),
            metadata_addr: self.imds.addr().to_string(),
            metadata: MetadataOptions {
                imds_v2: ImdsV2::Optional,
                allow: AllowList::new(&[]).unwrap(),
                limits: LimitOptions::default(),
                header_time: Duration::from_secs(10),
            },
            max_staleness: Duration::from_secs(3600),
            container_credentials: None,
            wait: Duration::from_millis(800),
            redirect: None,
            clock,
        }
    }
}

/// Sends a pod's GET request to an agent: returns status and body.
pub(crate) async fn get(agent: &Agent, from: Ipv4Addr, path: &str) -> (u16, String) {
    get_at(agent.addresses().pods.port(), from, path).await
}

/// Sends a pod's GET request to an agent's port.
pub(crate) async fn get_at(port: u16, from: Ipv4Addr, path: &str) -> (u16, String) {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n");
    ask(from, (Ipv4Addr::LOCALHOST, port).into(), &request).await
}

/// Sends a request and reads the whole response: status and body.
pub(crate) async fn ask(from: Ipv4Addr, to: SocketAddr, request: &str) -> (u16, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.get(9..12).and_then(|code| code.parse().ok());
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    (status.unwrap_or(0), body.unwrap_or_default())
}

/// Repeats a request until the response is as expected.
pub(crate) async fn until(
    agent: &Agent,
    from: Ipv4Addr,
    path: &str,
    expected: impl Fn(&(u16, String)) -> bool,
) -> (u16, String) {
    let mut last = None;
    let asking = async {
        loop {
            let answer = get(agent, from, path).await;
            if expected(&answer) {
                return answer;
            }
            last = Some(answer);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(TEST_TIMEOUT, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("the answer never came: {last:?}"),
    }
}

fn page(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// Returns the integer value of a broker's metric, by its name and labels as written. `None` if
/// there is no such metric.
pub(crate) async fn metric(broker: &Broker, name: &str) -> Option<u64> {
    metric_at(broker.addresses().admin, name).await
}

/// Returns the value of a metric from this admin port.
pub(crate) async fn metric_at<N: FromStr>(admin: SocketAddr, name: &str) -> Option<N> {
    let (_, text) = ask(Ipv4Addr::LOCALHOST, admin, &page("/metrics")).await;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().split('.').next()?.parse().ok())
}

/// Returns a non-integer metric of the broker or agent with this admin port.
pub(crate) async fn measure(admin: SocketAddr, name: &str) -> Option<f64> {
    let (_, text) = ask(Ipv4Addr::LOCALHOST, admin, &page("/metrics")).await;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok())
}

/// Returns the remaining validity of a certificate, in seconds.
pub(crate) async fn left(admin: SocketAddr, certificate: &str) -> Option<f64> {
    let name = format!(
        "rolegate_certificate_expiration_timestamp_seconds{{certificate=\"{certificate}\"}}"
    );
    let expiration = measure(admin, &name).await?;
    Some(expiration - jiff::Timestamp::now().as_second() as f64)
}

/// Returns a broker's ledger, newest first.
pub(crate) async fn ledger(broker: &Broker) -> Vec<serde_json::Value> {
    let to = broker.addresses().ledger;
    let (_, text) = ask(Ipv4Addr::LOCALHOST, to, &page("/ledger")).await;
    serde_json::from_str(&text).unwrap()
}
