//! A client of the protocol, as an attacker with a node's token would write it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, bail, ensure};
use futures::{FutureExt, StreamExt};
use rolegate_proto::client::Requests;
use rolegate_proto::v1::{
    self, FromAgent, ToAgent, broker_client::BrokerClient, from_agent, to_agent,
};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::http2;
use rolegate_runtime::tls::ClientTls;
use rolegate_testkit::lab::Namespace;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, Streaming};

use super::harness::{BrokerHarness, HOST, PORT};
use crate::fixture::DEADLINE;

/// A stream to broker 1, and all messages received on it.
pub(super) struct Stream {
    sender: mpsc::UnboundedSender<FromAgent>,
    incoming: Streaming<ToAgent>,
    pub(super) heard: Vec<ToAgent>,
    _connection: AbortOnDropHandle<()>,
}

impl Stream {
    /// Opens a stream from the network `from`, claiming to be the agent of `node`.
    pub(super) async fn open(
        harness: &BrokerHarness,
        from: &Namespace,
        node: &str,
        token: &str,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([10, 9, 0, 1], PORT));
        let stream = from.run(|| TcpStream::connect(address))??;
        stream.set_nonblocking(true)?;
        let tls = ClientTls {
            ca: harness.ca(),
            pair: None,
            clock: Clock::system(),
        };
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (requests, connection) = http2::connect(tls.connect(stream, HOST).await?).await?;
        let connection = tokio::spawn(connection.map(|_| ()));
        let (sender, mut outgoing) = mpsc::unbounded_channel();
        let hello = v1::Hello {
            node: node.into(),
            version: "0".into(),
            token: token.into(),
        };
        sender.send(message(from_agent::Body::Hello(hello)))?;
        let outgoing = futures::stream::poll_fn(move |context| outgoing.poll_recv(context));
        let origin = http::Uri::from_static("https://broker");
        let mut client = BrokerClient::with_origin(Requests(requests), origin);
        let incoming = client.serve(outgoing.fuse()).await?.into_inner();
        Ok(Self {
            sender,
            incoming,
            heard: Vec::new(),
            _connection: AbortOnDropHandle::new(connection),
        })
    }

    pub(super) fn send(&self, body: from_agent::Body) -> anyhow::Result<()> {
        Ok(self.sender.send(message(body))?)
    }

    /// Receives messages until one is as wanted.
    pub(super) async fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&to_agent::Body) -> bool,
    ) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let next = tokio::time::timeout_at(end, self.incoming.message()).await;
            let next = next.with_context(|| format!("no {what}: {:?}", self.heard))?;
            let next = next?.with_context(|| format!("the stream ended before {what}"))?;
            let found = next.body.as_ref().is_some_and(&wanted);
            self.heard.push(next);
            if found {
                return Ok(());
            }
        }
    }

    /// Receives messages until the stream ends with an error, which it returns.
    pub(super) async fn end(&mut self) -> anyhow::Result<Status> {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            match tokio::time::timeout_at(end, self.incoming.message()).await? {
                Ok(Some(next)) => self.heard.push(next),
                Ok(None) => bail!("the stream ended without a reason"),
                Err(status) => return Ok(status),
            }
        }
    }

    /// Returns the last state of each pod that it received, by name.
    pub(super) fn pods(&self) -> BTreeMap<String, v1::Pod> {
        let updates = self.updates();
        let pods = updates.flat_map(|update| update.pods.iter());
        pods.map(|it| (it.name.clone(), it.clone())).collect()
    }

    /// Returns all updates.
    pub(super) fn updates(&self) -> impl Iterator<Item = &v1::Update> {
        self.heard.iter().filter_map(|message| match &message.body {
            Some(to_agent::Body::Update(update)) => Some(update),
            _ => None,
        })
    }

    /// Returns all messages, including secrets, as a text to search.
    pub(super) fn text(&self) -> String {
        let sessions = self.updates().flat_map(|update| &update.sessions);
        let secrets: String = sessions
            .filter_map(|session| session.credentials.as_ref())
            .map(|it| format!("{} {} ", it.secret_access_key, it.session_token))
            .collect();
        format!("{:?} {secrets}", self.heard)
    }
}

/// Opens a stream that is rejected: the client receives only the reason.
pub(super) async fn refused(
    harness: &BrokerHarness,
    from: &Namespace,
    node: &str,
    token: &str,
) -> anyhow::Result<String> {
    let mut stream = Stream::open(harness, from, node, token).await?;
    // The broker may have rejected the stream already.
    let _ = stream.send(from_agent::Body::Activate(v1::Activate {}));
    let status = stream.end().await?;
    ensure!(status.code() == Code::Unauthenticated, "{status:?}");
    ensure!(stream.heard.is_empty(), "{:?}", stream.heard);
    Ok(status.message().to_owned())
}

fn message(body: from_agent::Body) -> FromAgent {
    FromAgent { body: Some(body) }
}
