//! A stolen node before a broker: whoever has everything of the node, its certificate too, asks for
//! what is on it, and for what is on another one.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use http::Uri;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rolegate_aws::sts::StsOptions;
use rolegate_broker::app::{Broker, BrokerOptions};
use rolegate_broker::identity::AgentAccount;
use rolegate_broker::service::NODE_URI;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session_name::SessionScope;
use rolegate_kube::client::ClientOptions;
use rolegate_kube::cluster_config::ConfigUse;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_proto::client::Requests;
use rolegate_proto::v1::{self, broker_client::BrokerClient, from_agent, resident, to_agent};
use rolegate_rules::in_force::GivenRuleFlags;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2;
use rolegate_runtime::tls::{ClientTls, TlsFiles};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::cast;
use super::stage::{ANY_PORT, DRAIN, READY};

/// The name that the broker's certificate is for.
const HOST: &str = "localhost";
/// Connections of so few agents.
const CONNECTIONS: usize = 16;

/// Where the stand-ins are that a broker needs.
#[derive(Debug)]
pub(super) struct Place {
    /// URL of Kubernetes.
    pub(super) kube: String,
    /// The metadata service.
    pub(super) metadata: String,
    /// STS, with the broker's own credentials.
    pub(super) sts: StsOptions,
}

/// What the thief gets.
#[derive(Debug)]
pub(super) struct Loot {
    /// Pods of the stolen node, with what was decided for each.
    pub(super) own: Vec<String>,
    /// What the broker says when another node is claimed.
    pub(super) other: String,
}

/// Starts a broker, and plays the thief of node [`cast::NODE`].
///
/// # Errors
/// When the broker doesn't start, or doesn't answer as the protocol says.
pub(super) async fn steal(place: Place) -> anyhow::Result<Loot> {
    let folder = tempfile::tempdir().context("there is no place for certificates")?;
    let served = certificates(&folder).await?;
    let ca = folder.path().join("ca.crt");
    let broker = Broker::start(options(place, served, &ca)).await?;
    tokio::time::timeout(READY, broker.readiness().ready())
        .await
        .with_context(|| broker.readiness().report().to_text(false))?;
    let thief = ClientTls {
        pair: Some(files(&folder, "node")),
        ca,
        clock: Clock::system(),
    };
    let address = broker.addresses().agents;
    let looted = async {
        let own = stream(&thief, address, cast::NODE).await?;
        let Err(other) = stream(&thief, address, cast::OTHER_NODE).await? else {
            bail!("the broker took the thief for the agent of another node");
        };
        let own = own.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(Loot { own, other })
    };
    let looted = tokio::time::timeout(READY, looted).await;
    broker.stop(DRAIN).await;
    looted.context("the broker does not answer")?
}

/// What comes on a stream that claims to be of `node`: its pods, or the refusal.
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
    send(from_agent::Body::Begin(v1::Begin {}))?;
    let outgoing = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let origin = Uri::from_static("https://broker");
    let mut client = BrokerClient::with_origin(Requests(requests), origin);
    let talk = async {
        let mut incoming = client.serve(outgoing).await?.into_inner();
        let mut pods = Vec::new();
        while let Some(message) = incoming.message().await? {
            if let Some(to_agent::Body::Update(update)) = message.body {
                pods.extend(update.residents.iter().map(told));
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
            // The broker closes what it refuses: its answer came before.
            talk.await
        }
    };
    came.map(Ok).or_else(|status| match status.code() {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            Ok(Err(status.message().to_owned()))
        }
        _ => bail!("the broker hung up: {}", status.message()),
    })
}

fn told(pod: &v1::Resident) -> String {
    let standing = match &pod.standing {
        Some(resident::Standing::Allowed(allowed)) => format!("role {}", allowed.listed),
        Some(resident::Standing::Denied(_)) => "refused".into(),
        _ => "no role".into(),
    };
    format!("{}/{}: {standing}", pod.namespace, pod.name)
}

/// An authority, the broker's certificate, and that of the node, which is stolen. Gives the broker's.
async fn certificates(folder: &TempDir) -> anyhow::Result<TlsFiles> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?;
    tokio::fs::write(folder.path().join("ca.crt"), certificate.pem()).await?;
    let issuer = Issuer::from_params(&authority, &key);
    let uri = format!("{NODE_URI}{}", cast::NODE);
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

fn options(place: Place, certificate: TlsFiles, ca: &Path) -> BrokerOptions {
    BrokerOptions {
        listen: ANY_PORT,
        admin_listen: ANY_PORT,
        ledger_listen: ANY_PORT,
        ledger_entries: CONNECTIONS,
        name: "demo".into(),
        client: ClientOptions {
            api_server: Some(place.kube),
            ..ClientOptions::default()
        },
        annotations: AnnotationKeys::default(),
        rules: RuleConfig::default(),
        given: GivenRuleFlags::default(),
        cluster_config: ConfigUse::Required,
        agents: AgentAccount {
            namespace: "rolegate-system".into(),
            name: "rolegate-agent".into(),
            audience: "rolegate".into(),
            check_address: true,
        },
        certificate: CertificateSource::Files(certificate),
        secret: (String::new(), String::new()),
        client_ca: Some(ca.to_owned()),
        metadata_addr: place.metadata,
        sts: place.sts,
        base_required: false,
        scope: SessionScope::Workload,
        session_seconds: 3600,
        engine: EngineOptions::default(),
        connections: CONNECTIONS,
        connections_per_peer: CONNECTIONS,
        kiam: None,
        clock: Clock::system(),
    }
}
