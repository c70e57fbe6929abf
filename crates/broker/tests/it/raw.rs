//! Agents that violate the protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
pub(crate) use rolegate_proto::client::Requests;
use rolegate_proto::v1::{self, broker_client::BrokerClient, from_agent, to_agent};
use rolegate_runtime::http2;
use rolegate_runtime::tls::{ClientTls, ClientTlsError};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::{Status, Streaming};

use crate::harness::TEST_TIMEOUT;

/// Returns the origin of requests.
pub(crate) fn origin() -> Uri {
    Uri::from_static("https://broker")
}

/// Opens a TCP connection from an address.
pub(crate) async fn dial(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Opens an HTTP/2 connection from an address. It ends with the handle's task.
pub(crate) async fn connect(
    tls: &ClientTls,
    from: Ipv4Addr,
    to: SocketAddr,
) -> Result<(Requests, AbortHandle), ClientTlsError> {
    let stream = tls.connect(dial(from, to).await, "localhost").await?;
    let (requests, connection) = http2::connect(stream).await.unwrap();
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((Requests(requests), task.abort_handle()))
}

/// A stream that sends messages unchanged.
pub(crate) struct Raw {
    sender: mpsc::Sender<v1::FromAgent>,
    incoming: Streaming<v1::ToAgent>,
    connection: AbortHandle,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Raw {
    pub(crate) async fn open(tls: &ClientTls, to: SocketAddr) -> Self {
        let (requests, connection) = connect(tls, Ipv4Addr::LOCALHOST, to).await.unwrap();
        Self::on(requests, connection).await.unwrap()
    }

    pub(crate) async fn on(requests: Requests, connection: AbortHandle) -> Result<Self, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let outgoing = Outgoing(receiver);
        let mut client = BrokerClient::with_origin(requests, origin());
        let incoming = client.serve(outgoing).await?.into_inner();
        Ok(Self {
            sender,
            incoming,
            connection,
        })
    }

    pub(crate) async fn say(&self, body: from_agent::Body) {
        let message = v1::FromAgent { body: Some(body) };
        // The broker may have closed the stream, which the caller checks.
        let _ = self.sender.send(message).await;
    }

    pub(crate) async fn hello(&self, node: &str) {
        let hello = v1::Hello {
            node: node.into(),
            version: "0".into(),
            token: String::new(),
        };
        self.say(from_agent::Body::Hello(hello)).await;
    }

    /// Opens an active stream of `node`.
    pub(crate) async fn serving(tls: &ClientTls, to: SocketAddr, node: &str) -> Self {
        Self::serving_by(tls, to, node, "").await
    }

    /// Opens an active stream that authenticates with a token.
    pub(crate) async fn serving_by(
        tls: &ClientTls,
        to: SocketAddr,
        node: &str,
        token: &str,
    ) -> Self {
        let mut raw = Self::open(tls, to).await;
        let hello = v1::Hello {
            node: node.into(),
            token: token.into(),
            version: "0".into(),
        };
        raw.say(from_agent::Body::Hello(hello)).await;
        let welcome = raw.hear().await.unwrap();
        assert!(matches!(welcome, Some(to_agent::Body::Welcome(_))));
        raw.say(from_agent::Body::Activate(v1::Activate {})).await;
        raw
    }

    /// Returns the next message, or `None` at the end.
    pub(crate) async fn hear(&mut self) -> Result<Option<to_agent::Body>, Status> {
        let message = tokio::time::timeout(TEST_TIMEOUT, self.incoming.message()).await;
        let message = message.expect("no message arrives")?;
        Ok(message.and_then(|message| message.body))
    }

    /// Returns the next update.
    pub(crate) async fn update(&mut self) -> v1::Update {
        let updating = async {
            loop {
                match self.hear().await.unwrap() {
                    Some(to_agent::Body::Update(update)) => return update,
                    Some(_) => {}
                    None => panic!("the stream ended"),
                }
            }
        };
        let update = tokio::time::timeout(TEST_TIMEOUT, updating).await;
        update.expect("no update comes")
    }

    /// Returns the status that ends the stream.
    pub(crate) async fn end(mut self) -> Status {
        let ending = async {
            loop {
                match self.hear().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        let ended = tokio::time::timeout(TEST_TIMEOUT, ending).await;
        ended.expect("the stream goes on")
    }
}

struct Outgoing(mpsc::Receiver<v1::FromAgent>);

impl futures::Stream for Outgoing {
    type Item = v1::FromAgent;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<v1::FromAgent>> {
        self.0.poll_recv(context)
    }
}

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
    assert!(waited.is_ok(), "{what} never came to be");
}
