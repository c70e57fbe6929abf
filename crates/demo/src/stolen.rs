//! A stolen node and a broker: a thief with everything from the node, including its certificate,
//! requests the node's pods and those of another node.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use http::Uri;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rolegate_authorizer::options::DecisionOptions;
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions};
use rolegate_broker::identity::AgentAccount;
use rolegate_broker::service::NODE_URI;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_proto::client::Requests;
use rolegate_proto::v1::{self, broker_client::BrokerClient, from_agent, pod, to_agent};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2;
use rolegate_runtime::tls::{ClientTls, TlsFiles};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::pods;
use super::processes::{ANY_PORT, DRAIN, READY};

/// The DNS name of the broker's certificate.
const HOST: &str = "localhost";
/// Connection limit, for a few agents.
const CONNECTIONS: usize = 16;

/// The stand-ins that a broker needs.
#[derive(Debug)]
pub(super) struct StandIns {
    /// URL of Kubernetes.
    pub(super) kube: String,
    /// The metadata service.
    pub(super) metadata: String,
    /// STS, with the broker's own credentials.
    pub(super) sts: StsOptions,
}

/// The thief's results.
#[derive(Debug)]
pub(super) struct Stolen {
    /// Pods of the stolen node, with the decision for each.
    pub(super) own: Vec<String>,
    /// The broker's response to a claim of another node.
    pub(super) other: String,
}

/// Starts a broker, and acts as a thief of node [`pods::NODE`].
///
/// # Errors
/// Returns an error if the broker does not start, or violates the protocol.
pub(super) async fn steal(stand_ins: StandIns) -> anyhow::Result<Stolen> {
    let folder = tempfile::tempdir().context("cannot create a directory for certificates")?;
    let served = certificates(&folder).await?;
    let ca = folder.path().join("ca.crt");
    let broker = Broker::start(options(stand_ins, served, &ca)).await?;
    tokio::time::timeout(READY, broker.readiness().ready())
        .await
        .with_context(|| broker.readiness().report().to_text(false))?;
    let thief = ClientTls {
        pair: Some(files(&folder, "node")),
        ca,
        clock: Clock::system(),
    };
    let address = broker.addresses().agents;
    let stolen = async {
        let own = stream(&thief, address, pods::NODE).await?;
        let Err(other) = stream(&thief, address, pods::OTHER_NODE).await? else {
            bail!("the broker accepted the thief as the agent of another node");
        };
        let own = own.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(Stolen { own, other })
    };
    let stolen = tokio::time::timeout(READY, stolen).await;
    broker.stop(DRAIN).await;
    stolen.context("the broker does not respond")?
}

/// Returns the first response on a stream that claims to be `node`: its pods, or the rejection.
async fn stream(
    tls: &ClientTls,
    address: SocketAddr,
    node: &str,
) -> anyhow::Result<Result<Vec<String>, String>> {
    let tcp = TcpStream::connect(address).await?;
    let (requests, connection) = http2::connect(tls.connect(tcp, HOST).await?).await?;
    let (sender, mut receiver) = mpsc::channel(4);
    let send = |body| sender.try_send(v1::FromAgent { body: Some(body) });
    send(from_agent::Body::Hello(v1::Hello {
        node: node.into(),
        version: "0".into(),
        token: String::new(),
    }))?;
    send(from_agent::Body::Activate(v1::Activate {}))?;
    let outgoing = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let origin = Uri::from_static("https://broker");
    let mut client = BrokerClient::with_origin(Requests(requests), origin);
    let talk = async {
        let mut incoming = client.serve(outgoing).await?.into_inner();
        let mut pods = Vec::new();
        while let Some(message) = incoming.message().await? {
            if let Some(to_agent::Body::Update(update)) = message.body {
                pods.extend(update.pods.iter().map(told));
                if update.complete {
                    break;
                }
            }
        }
        Ok::<_, tonic::Status>(pods)
    };
    let mut talk = std::pin::pin!(talk);
    let came = tokio::select! {
        came = &mut talk => came,
        ended = connection => {
            ended?;
            // The broker closes a rejected stream after its response.
            talk.await
        }
    };
    came.map(Ok).or_else(|status| match status.code() {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            Ok(Err(status.message().to_owned()))
        }
        _ => bail!("the broker closed the stream: {}", status.message()),
    })
}

fn told(pod: &v1::Pod) -> String {
    let authorization = match &pod.authorization {
        Some(pod::Authorization::Allowed(allowed)) => format!("role {}", allowed.role_name),
        Some(pod::Authorization::Denied(_)) => "refused".into(),
        _ => "no role".into(),
    };
    format!("{}/{}: {authorization}", pod.namespace, pod.name)
}

/// Creates a CA, the broker's certificate, and that of the stolen node. Returns the broker's.
async fn certificates(folder: &TempDir) -> anyhow::Result<TlsFiles> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?;
    tokio::fs::write(folder.path().join("ca.crt"), certificate.pem()).await?;
    let issuer = Issuer::from_params(&authority, &key);
    let uri = format!("{NODE_URI}{}", pods::NODE);
    let mut node = CertificateParams::new(Vec::new())?;
    node.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let broker = CertificateParams::new(vec![HOST.to_owned()])?;
    for (name, params) in [("broker", broker), ("node", node)] {
        let key = KeyPair::generate()?;
        let pair = files(folder, name);
        tokio::fs::write(pair.certificate, params.signed_by(&key, &issuer)?.pem()).await?;
        tokio::fs::write(pair.key, key.serialize_pem()).await?;
    }
    Ok(files(folder, "broker"))
}

fn files(folder: &TempDir, name: &str) -> TlsFiles {
    TlsFiles {
        certificate: folder.path().join(format!("{name}.crt")),
        key: folder.path().join(format!("{name}.key")),
    }
}

fn options(stand_ins: StandIns, certificate: TlsFiles, ca: &Path) -> BrokerOptions {
    BrokerOptions {
        listen: ANY_PORT,
        admin_listen: ANY_PORT,
        ledger_listen: ANY_PORT,
        ledger_entries: CONNECTIONS,
        name: "demo".into(),
        client: ClientOptions {
            api_server: Some(stand_ins.kube),
            ..ClientOptions::default()
        },
        decisions: DecisionOptions {
            cluster_config: ConfigMode::Required,
            ..DecisionOptions::default()
        },
        agents: AgentAccount {
            namespace: "rolegate-system".into(),
            name: "rolegate-agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        },
        certificate: CertificateSource::Files(certificate),
        secret: (String::new(), String::new()),
        client_ca: Some(ca.to_owned()),
        metadata_addr: stand_ins.metadata,
        sts: stand_ins.sts,
        connections: CONNECTIONS,
        connections_per_peer: CONNECTIONS,
        kiam: None,
        clock: Clock::system(),
    }
}
