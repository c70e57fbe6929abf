//! A test harness: stand-ins, an agent, and pods that send requests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use rolegate_agent::app::{Agent, AgentOptions, Mode, SourceOptions, StandaloneOptions};
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::metadata::{ImdsV2, MetadataOptions};
use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::metadata::AllowList;
use rolegate_devkit::{Imds, ImdsOptions, KubeApi, KubeApiOptions, Namespace, Pod, Sts};
use rolegate_kube::client::ClientOptions;
use rolegate_runtime::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub(crate) const NODE: &str = "node-a";
pub(crate) const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Timeout of anything that a test waits for.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Stand-ins, and the agent that uses them.
pub(crate) struct TestAgent {
    pub(crate) sts: Sts,
    pub(crate) imds: Imds,
    pub(crate) kube: KubeApi,
    pub(crate) agent: Agent,
}

/// Returns the address of pod `n`.
pub(crate) fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, 0, n)
}

pub(crate) fn arn(role: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{role}")
}

/// Returns a running pod of namespace `default` at [`address`] `n`.
pub(crate) fn pod(name: &str, n: u8) -> Pod {
    Pod::new("default", name)
        .node(NODE)
        .ip(&address(n).to_string())
}

/// Returns a pod that requests a role.
pub(crate) fn pod_with_role(name: &str, n: u8, role: &str) -> Pod {
    pod(name, n).annotation("iam.amazonaws.com/role", role)
}

impl TestAgent {
    /// Starts an agent with pods `reader` (1, role reader), `writer` (2, a role that its namespace
    /// does not allow) and `plain` (3, no role).
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// Starts an agent with changed options.
    pub(crate) async fn with(change: impl FnOnce(&mut AgentOptions)) -> Self {
        let harness = Self::unready(change).await;
        harness.ready().await;
        harness
    }

    /// Starts an agent with changed options, without waiting until it is ready.
    pub(crate) async fn unready(change: impl FnOnce(&mut AgentOptions)) -> Self {
        let kube = KubeApi::start(LOOPBACK, KubeApiOptions::default())
            .await
            .unwrap();
        let imds = Imds::start(
            LOOPBACK,
            ImdsOptions {
                account: "123456789012".into(),
                ..ImdsOptions::default()
            },
        )
        .await
        .unwrap();
        let (id, key) = imds.node_key();
        let sts_options = rolegate_devkit::StsOptions {
            keys: Some([(id.clone(), key.clone())].into()),
            ..rolegate_devkit::StsOptions::default()
        };
        let sts = Sts::start(LOOPBACK, sts_options).await.unwrap();
        kube.put_namespace(Namespace::new("default").annotation(
            "iam.amazonaws.com/allowed-roles",
            r#"["reader*", "team/*"]"#,
        ));
        kube.put_pod(pod_with_role("reader", 1, "reader"));
        kube.put_pod(pod_with_role("writer", 2, "writer"));
        kube.put_pod(pod("plain", 3));
        let credentials =
            Credentials::new(id, key.secret_access_key, key.session_token, None, "devkit");
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        let alone = StandaloneOptions {
            source: SourceOptions::Kubernetes {
                client: ClientOptions {
                    api_server: Some(kube.url()),
                    ..ClientOptions::default()
                },
                node: Some(NODE.into()),
            },
            decisions: DecisionOptions {
                rules: RuleConfig {
                    base: Some(base),
                    ..RuleConfig::default()
                },
                ..DecisionOptions::default()
            },
            sts: StsOptions {
                region: Some("eu-west-1".into()),
                endpoint_url: Some(sts.url()),
                credentials: Some(SharedCredentialsProvider::new(credentials)),
                ..StsOptions::default()
            },
        };
        let mut options = AgentOptions {
            listen: LOOPBACK,
            admin_listen: LOOPBACK,
            runtime_dir: None,
            host_ip: Some(Ipv4Addr::LOCALHOST.into()),
            debug: false,
            kube2iam_metrics: false,
            mode: Mode::Standalone(Box::new(alone)),
            metadata_addr: imds.addr().to_string(),
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
            clock: Clock::system(),
        };
        change(&mut options);
        let agent = Agent::start(options).await.unwrap();
        Self {
            sts,
            imds,
            kube,
            agent,
        }
    }

    pub(crate) async fn ready(&self) {
        let ready = self.agent.readiness().ready();
        if tokio::time::timeout(EVENT_TIMEOUT, ready).await.is_err() {
            panic!("{}", self.agent.readiness().report().to_text(true));
        }
    }

    /// Sends a GET as pod `n`.
    pub(crate) async fn get(&self, n: u8, path: &str) -> Reply {
        self.request(n, &format!("GET {path} HTTP/1.1")).await
    }

    /// Sends a request line and header lines as pod `n`. `Host` is the metadata address.
    pub(crate) async fn request(&self, n: u8, head: &str) -> Reply {
        self.raw(n, &format!("{head}\r\nHost: 169.254.169.254\r\n\r\n"))
            .await
    }

    /// Sends bytes as pod `n`, and reads to the end of the response.
    pub(crate) async fn raw(&self, n: u8, bytes: &str) -> Reply {
        let mut stream = self.connect(n).await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        reply(&mut stream).await
    }

    pub(crate) async fn connect(&self, n: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address(n), 0).into()).unwrap();
        let port = self.agent.addresses().pods.port();
        socket
            .connect((Ipv4Addr::LOCALHOST, port).into())
            .await
            .unwrap()
    }

    /// Sends a GET to the operators' port.
    pub(crate) async fn admin(&self, path: &str) -> Reply {
        let mut stream = TcpStream::connect(self.agent.addresses().admin)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        reply(&mut stream).await
    }

    /// Returns the key ID of `role` for pod `n`, which must get credentials.
    pub(crate) async fn key_id(&self, n: u8, role: &str) -> String {
        let reply = self.get(n, &format!("{CREDENTIALS}{role}")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["AccessKeyId"].as_str().unwrap().to_owned()
    }

    /// Repeats a request as pod `n` until the response is as expected.
    pub(crate) async fn until(
        &self,
        n: u8,
        path: &str,
        expected: impl Fn(&Reply) -> bool,
    ) -> Reply {
        let asking = async {
            loop {
                let reply = self.get(n, path).await;
                if expected(&reply) {
                    return reply;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(EVENT_TIMEOUT, asking)
            .await
            .expect("the answer never came")
    }

    /// Waits for an Event that mentions `text`, and returns its note.
    pub(crate) async fn event_note(&self, text: &str) -> String {
        let looking = async {
            loop {
                let events = self.kube.events();
                let notes = events.iter().filter_map(|event| event["note"].as_str());
                if let Some(note) = notes.into_iter().find(|note| note.contains(text)) {
                    return note.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(EVENT_TIMEOUT, looking)
            .await
            .expect("no Event")
    }

    /// Returns the calls of AssumeRole so far.
    pub(crate) fn assumed(&self) -> Vec<rolegate_devkit::StsCall> {
        let mut calls = self.sts.calls();
        calls.retain(|call| call.action == "AssumeRole");
        calls
    }
}

/// A received response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Reads one response: the head, and the announced body or everything until the end.
pub(crate) async fn reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                let reply = Reply {
                    status: head
                        .get(9..12)
                        .and_then(|code| code.parse().ok())
                        .unwrap_or(0),
                    body: String::from_utf8_lossy(&bytes[end + 4..]).into_owned(),
                    head,
                };
                let length = reply
                    .header("content-length")
                    .and_then(|length| length.parse().ok());
                if length.is_none_or(|length: usize| reply.body.len() >= length) {
                    return reply;
                }
                // The head of a response to HEAD announces a body that is not sent.
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return reply;
                }
            } else if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                let head = String::from_utf8_lossy(&bytes).into_owned();
                return Reply {
                    status: 0,
                    head,
                    body: String::new(),
                };
            }
        }
    };
    tokio::time::timeout(EVENT_TIMEOUT, reading)
        .await
        .expect("no answer")
}

/// Returns the standalone options of an agent.
pub(crate) fn alone(options: &mut AgentOptions) -> &mut StandaloneOptions {
    match &mut options.mode {
        Mode::Standalone(alone) => alone,
        Mode::Brokered(_) => panic!("the harness starts standalone agents"),
    }
}
