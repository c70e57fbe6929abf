//! One stream to a broker.

use std::future::pending;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use http::Uri;
use rolegate_proto::client::Requests;
use rolegate_proto::v1::{self, broker_client::BrokerClient, from_agent, to_agent};
use rolegate_proto::wire::MAX_TO_AGENT;
use rolegate_runtime::http2;
use rolegate_runtime::tls::ClientTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::token::{TokenError, TokenFile};
use super::{BrokerOptions, Proof};

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// Addresses that are tried before the next wait.
const TRIES: usize = 3;
/// The time limit for a handshake while no broker serves: a busy one should not be asked again.
const PATIENT: Duration = Duration::from_secs(20);
/// The same while another one serves.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For the broker to believe us: it may have to wait for its own watch.
const WELCOME: Duration = Duration::from_secs(15);
/// The time to read a refusal that came before its connection ended.
const REFUSAL: Duration = Duration::from_secs(1);

/// What happens on a link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The broker believes us.
    Up {
        /// Its name.
        broker: String,
        /// Where it is.
        address: SocketAddr,
    },
    /// Something is new.
    Update(v1::Update),
    /// The broker is alive, and its picture is so old, in milliseconds.
    Pulse(u64),
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the broker's name {host} cannot be resolved: {why}")]
    Name { host: String, why: String },
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{address} does not answer")]
    Slow { address: SocketAddr },
    #[error(transparent)]
    Tls(#[from] rolegate_runtime::tls::ClientTlsError),
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The broker doesn't believe us.
    #[error("the broker refuses this agent: {0}")]
    Refused(String),
    #[error("the stream ended: {0}")]
    Ended(String),
    #[error("the broker was not heard of for too long")]
    Silent,
    /// The other stream's broker does.
    #[error("the broker has not heard of the cluster for {0:.0?}, and another one has")]
    Stale(Duration),
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        match status.code() {
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
                Self::Refused(status.message().escape_debug().to_string())
            }
            _ => Self::Ended(status.message().escape_debug().to_string()),
        }
    }
}

/// A number that tells links apart.
pub(super) type LinkId = u64;

/// Runs one link until it ends, to another address than those `taken` if there is one. What is to be sent comes by `orders`, what happens goes to
/// `events`, which is waited for: a broker's stream flows no faster than it is taken.
pub(super) async fn run(
    id: LinkId,
    taken: &[SocketAddr],
    options: &BrokerOptions,
    orders: (mpsc::Sender<v1::FromAgent>, mpsc::Receiver<v1::FromAgent>),
    events: &mpsc::Sender<(LinkId, LinkEvent)>,
) -> LinkError {
    let talk = async {
        let patience = if taken.is_empty() { PATIENT } else { HANDSHAKE };
        let (stream, address) = reach(options, taken).await?;
        let _ = stream.set_nodelay(true);
        let tls = ClientTls {
            ca: options.ca.clone(),
            pair: match &options.proof {
                Proof::Certificate(files) => Some(files.clone()),
                Proof::Token(_) => None,
            },
            clock: options.clock.clone(),
        };
        let stream = tls.connect_within(patience, stream, &options.host).await?;
        converse(id, (stream, address), options, orders, events).await
    };
    match talk.await {
        Ok(()) => LinkError::Ended("the broker closed it".into()),
        Err(error) => error,
    }
}

/// A connection to one of the broker's addresses: if possible to none of those `taken`, since one
/// address is often one broker, but rather to those than to none.
async fn reach(
    options: &BrokerOptions,
    taken: &[SocketAddr],
) -> Result<(TcpStream, SocketAddr), LinkError> {
    let failed = |why: String| LinkError::Name {
        host: options.host.clone(),
        why,
    };
    let host = (options.host.as_str(), options.port);
    let found = timeout(CONNECT, tokio::net::lookup_host(host)).await;
    let found = found.map_err(|_| failed("no answer".into()))?;
    let mut addresses: Vec<_> = found.map_err(|error| failed(error.to_string()))?.collect();
    fastrand::shuffle(&mut addresses);
    addresses.sort_by_key(|address| taken.contains(address));
    let mut last = failed("it has no address".into());
    for address in addresses.into_iter().take(TRIES) {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(source)) => last = LinkError::Connect { address, source },
            Err(_) => last = LinkError::Slow { address },
        }
    }
    Err(last)
}

async fn converse(
    id: LinkId,
    (stream, address): (
        impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        SocketAddr,
    ),
    options: &BrokerOptions,
    (sender, mut receiver): (mpsc::Sender<v1::FromAgent>, mpsc::Receiver<v1::FromAgent>),
    events: &mpsc::Sender<(LinkId, LinkEvent)>,
) -> Result<(), LinkError> {
    let mut token = match &options.proof {
        Proof::Token(path) => Some(TokenFile::new(path, options.clock.clone())),
        Proof::Certificate(_) => None,
    };
    let (requests, connection) = http2::connect(stream).await?;

    let hello = from_agent::Body::Hello(v1::Hello {
        node: options.node.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        token: match &mut token {
            Some(file) => file.show().await?.to_owned(),
            None => String::new(),
        },
    });
    let mut hello = Some(message(hello));
    let outgoing = futures::stream::poll_fn(move |context| match hello.take() {
        Some(hello) => Poll::Ready(Some(hello)),
        None => receiver.poll_recv(context),
    });
    let origin = Uri::from_static("https://broker");
    let mut client = BrokerClient::with_origin(Requests(requests), origin)
        .max_decoding_message_size(MAX_TO_AGENT);

    let talk = async {
        let answer = timeout(WELCOME, client.serve(outgoing)).await;
        let mut incoming = answer
            .map_err(|_| LinkError::Slow { address })??
            .into_inner();
        let first = timeout(WELCOME, incoming.message()).await;
        let first = first.map_err(|_| LinkError::Slow { address })??;
        let Some(to_agent::Body::Welcome(welcome)) = first.and_then(|it| it.body) else {
            return Err(LinkError::Ended("it did not begin with Welcome".into()));
        };
        // Three pulses may get lost in a busy moment.
        let silence = Duration::from_secs(u64::from(welcome.pulse_seconds.clamp(1, 60)) * 4);
        let again = Duration::from_secs(u64::from(welcome.proof_seconds.clamp(20, 3600)) / 2);
        let broker = welcome.broker;
        let up = LinkEvent::Up { broker, address };
        if events.send((id, up)).await.is_err() {
            return Ok(());
        }
        let proving = async {
            let Some(mut file) = token else {
                return pending().await;
            };
            loop {
                let token = file.renewed(again).await?.to_owned();
                let proof = from_agent::Body::Proof(v1::Proof { token });
                let _ = sender.send(message(proof)).await;
            }
        };
        let hearing = async {
            loop {
                let message = timeout(silence, incoming.message()).await;
                let Some(message) = message.map_err(|_| LinkError::Silent)?? else {
                    return Ok(());
                };
                let event = match message.body {
                    Some(to_agent::Body::Update(update)) => LinkEvent::Update(update),
                    Some(to_agent::Body::Pulse(pulse)) => LinkEvent::Pulse(pulse.picture_age_ms),
                    // Of a later version.
                    _ => continue,
                };
                if events.send((id, event)).await.is_err() {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = hearing => ended,
            ended = proving => ended,
        }
    };
    let mut talk = std::pin::pin!(talk);
    tokio::select! {
        ended = &mut talk => ended,
        ended = connection => {
            ended?;
            // A broker closes the connection of an agent that it refuses: the reason came before.
            match timeout(REFUSAL, talk).await {
                Ok(Err(refused @ LinkError::Refused(_))) => Err(refused),
                _ => Ok(()),
            }
        }
    }
}

/// A message of the agent's.
pub(super) fn message(body: from_agent::Body) -> v1::FromAgent {
    v1::FromAgent { body: Some(body) }
}
