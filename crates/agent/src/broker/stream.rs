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
use tonic::{Status, Streaming};

use super::token::{TokenError, TokenFile};
use super::{BrokerOptions, ClientAuth};

/// Timeout of a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Number of addresses to try before the next delay.
const MAX_ADDRESSES: usize = 3;
/// Timeout of a handshake while no broker is active: a busy broker should not be retried.
const LONG_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of a handshake while another broker is active.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the authentication: the broker may have to wait for its own watch.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Time to read a rejection that arrived before its connection ended.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// An event of a stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// The broker has authenticated this agent.
    Connected {
        /// Its name.
        broker: String,
        /// Its address.
        address: SocketAddr,
    },
    /// An update.
    Update(v1::Update),
    /// The broker is alive, with the staleness of its pod table in milliseconds.
    Heartbeat(u64),
}

/// The reason why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("cannot resolve the broker's name {host}: {why}")]
    Name { host: String, why: String },
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{address} does not respond")]
    Slow { address: SocketAddr },
    #[error(transparent)]
    Tls(#[from] rolegate_runtime::tls::ClientTlsError),
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The broker did not authenticate this agent.
    #[error("the broker rejected this agent: {0}")]
    Refused(String),
    #[error("the stream ended: {0}")]
    Ended(String),
    #[error("the broker sent nothing for too long")]
    Silent,
    /// The broker's cluster state is stale, and that of the other stream's broker is not.
    #[error(
        "the broker has received no update from the cluster for {0:.0?}, but another broker has"
    )]
    Stale(Duration),
}

impl From<Status> for StreamError {
    fn from(status: Status) -> Self {
        match status.code() {
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
                Self::Refused(status.message().escape_debug().to_string())
            }
            _ => Self::Ended(status.message().escape_debug().to_string()),
        }
    }
}

/// The identifier of a stream.
pub(super) type StreamId = u64;

/// Runs one stream until it ends, if possible to another address than those `taken`. It sends the
/// messages from `orders`, and its events go to `events`. The queue is bounded, so a broker's
/// stream flows no faster than its events are processed.
pub(super) async fn run(
    id: StreamId,
    taken: &[SocketAddr],
    options: &BrokerOptions,
    orders: (mpsc::Sender<v1::FromAgent>, mpsc::Receiver<v1::FromAgent>),
    events: &mpsc::Sender<(StreamId, StreamEvent)>,
) -> StreamError {
    let talk = async {
        let patience = if taken.is_empty() {
            LONG_HANDSHAKE_TIMEOUT
        } else {
            HANDSHAKE_TIMEOUT
        };
        let (stream, address) = reach(options, taken).await?;
        let _ = stream.set_nodelay(true);
        let tls = ClientTls {
            ca: options.ca.clone(),
            pair: match &options.proof {
                ClientAuth::Certificate(files) => Some(files.clone()),
                ClientAuth::Token(_) => None,
            },
            clock: options.clock.clone(),
        };
        let stream = tls.connect_within(patience, stream, &options.host).await?;
        converse(id, (stream, address), options, orders, events).await
    };
    match talk.await {
        Ok(()) => StreamError::Ended("the broker closed it".into()),
        Err(error) => error,
    }
}

/// Connects to one of the broker's addresses, preferably to none of those `taken`, since one
/// address often means one broker.
async fn reach(
    options: &BrokerOptions,
    taken: &[SocketAddr],
) -> Result<(TcpStream, SocketAddr), StreamError> {
    let failed = |why: String| StreamError::Name {
        host: options.host.clone(),
        why,
    };
    let host = (options.host.as_str(), options.port);
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(host))
        .await
        .map_err(|_| failed("no response".into()))?;
    let mut addresses: Vec<_> = found.map_err(|error| failed(error.to_string()))?.collect();
    fastrand::shuffle(&mut addresses);
    addresses.sort_by_key(|address| taken.contains(address));
    let mut last = failed("it has no address".into());
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(source)) => last = StreamError::Connect { address, source },
            Err(_) => last = StreamError::Slow { address },
        }
    }
    Err(last)
}

async fn converse(
    id: StreamId,
    (stream, address): (
        impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        SocketAddr,
    ),
    options: &BrokerOptions,
    (sender, mut receiver): (mpsc::Sender<v1::FromAgent>, mpsc::Receiver<v1::FromAgent>),
    events: &mpsc::Sender<(StreamId, StreamEvent)>,
) -> Result<(), StreamError> {
    let mut token = match &options.proof {
        ClientAuth::Token(path) => Some(TokenFile::new(path, options.clock.clone())),
        ClientAuth::Certificate(_) => None,
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
        let answer = timeout(WELCOME_TIMEOUT, client.serve(outgoing)).await;
        let mut incoming = answer
            .map_err(|_| StreamError::Slow { address })??
            .into_inner();
        let welcome = welcomed(&mut incoming, address).await?;
        // Tolerates the loss of three heartbeats.
        let silence =
            Duration::from_secs(u64::from(welcome.heartbeat_interval_seconds.clamp(1, 60)) * 4);
        let again =
            Duration::from_secs(u64::from(welcome.reauthenticate_seconds.clamp(20, 3600)) / 2);
        let broker = welcome.broker;
        let up = StreamEvent::Connected { broker, address };
        if events.send((id, up)).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            ended = receive(id, incoming, silence, events) => ended,
            ended = reauthenticate(token, again, sender) => ended,
        }
    };
    let mut talk = std::pin::pin!(talk);
    tokio::select! {
        ended = &mut talk => ended,
        ended = connection => {
            ended?;
            // A broker closes the connection of an agent that it rejects; the reason arrived
            // before.
            match timeout(REJECTION_TIMEOUT, talk).await {
                Ok(Err(refused @ StreamError::Refused(_))) => Err(refused),
                _ => Ok(()),
            }
        }
    }
}

/// Reads the broker's first message.
async fn welcomed(
    incoming: &mut Streaming<v1::ToAgent>,
    address: SocketAddr,
) -> Result<v1::Welcome, StreamError> {
    let first = timeout(WELCOME_TIMEOUT, incoming.message())
        .await
        .map_err(|_| StreamError::Slow { address })??;
    match first.and_then(|it| it.body) {
        Some(to_agent::Body::Welcome(welcome)) => Ok(welcome),
        _ => Err(StreamError::Ended(
            "the first message was not Welcome".into(),
        )),
    }
}

/// Sends the token again each time that it is due. Never returns without one.
async fn reauthenticate(
    token: Option<TokenFile>,
    again: Duration,
    sender: mpsc::Sender<v1::FromAgent>,
) -> Result<(), StreamError> {
    let Some(mut file) = token else {
        return pending().await;
    };
    loop {
        let token = file.renewed(again).await?.to_owned();
        let proof = from_agent::Body::Reauthenticate(v1::Reauthenticate { token });
        let _ = sender.send(message(proof)).await;
    }
}

/// Reads messages until the stream ends, or nothing arrives for the time `silence`.
async fn receive(
    id: StreamId,
    mut incoming: Streaming<v1::ToAgent>,
    silence: Duration,
    events: &mpsc::Sender<(StreamId, StreamEvent)>,
) -> Result<(), StreamError> {
    loop {
        let message = timeout(silence, incoming.message()).await;
        let Some(message) = message.map_err(|_| StreamError::Silent)?? else {
            return Ok(());
        };
        let event = match message.body {
            Some(to_agent::Body::Update(update)) => StreamEvent::Update(update),
            Some(to_agent::Body::Heartbeat(heartbeat)) => {
                StreamEvent::Heartbeat(heartbeat.staleness_ms)
            }
            // A message of a later version.
            _ => continue,
        };
        if events.send((id, event)).await.is_err() {
            return Ok(());
        }
    }
}

/// Wraps a message of the agent.
pub(super) fn message(body: from_agent::Body) -> v1::FromAgent {
    v1::FromAgent { body: Some(body) }
}
