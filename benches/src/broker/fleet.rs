//! Hundreds of agents. Each has two streams, as the real one does, and records its updates.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use rolegate_proto::v1::{self, broker_client::BrokerClient, from_agent, to_agent};
use rolegate_runtime::http2;
use rolegate_runtime::tls::ClientTls;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::body::Body;

use super::authority::{Authority, HOST};
use super::observed::Observed;

/// The first agent's address. The others have the following ones.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(127, 200, 0, 1);
const RETRY: Duration = Duration::from_millis(100);

/// Running agents. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct Fleet {
    runtime: Runtime,
    pub(crate) observed: Arc<Observed>,
}

impl Fleet {
    pub(crate) fn new(observed: Observed) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            observed: Arc::new(observed),
        })
    }

    /// Starts the agents of these nodes, distributed over the brokers.
    pub(crate) fn start(
        &self,
        nodes: Range<u32>,
        authority: &Authority,
        brokers: &[SocketAddr],
    ) -> anyhow::Result<()> {
        let brokers: Arc<[SocketAddr]> = brokers.into();
        for node in nodes {
            let name = format!("node-{node}");
            let agent = Agent {
                tls: authority.client(&name)?,
                node: name,
                address: Ipv4Addr::from_bits(ADDRESSES.to_bits() + node),
                brokers: brokers.clone(),
            };
            self.runtime.spawn(agent.run(node, self.observed.clone()));
        }
        Ok(())
    }

    /// Returns the runtime for other tasks.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

#[derive(Debug, Clone)]
struct Agent {
    node: String,
    address: Ipv4Addr,
    tls: ClientTls,
    brokers: Arc<[SocketAddr]>,
}

/// A stream after authentication.
struct StreamLink {
    orders: mpsc::Sender<v1::FromAgent>,
    incoming: Streaming<v1::ToAgent>,
    connection: JoinHandle<()>,
}

impl Drop for StreamLink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Agent {
    async fn run(self, number: u32, observed: Arc<Observed>) {
        let mut next = usize::try_from(number).unwrap_or_default();
        let mut serving = self.dial(next).await;
        next += 1;
        serving.begin();
        let mut warm: Option<StreamLink> = None;
        let mut dialing: Option<BoxFuture<'_, StreamLink>> = None;
        loop {
            if warm.is_none() && dialing.is_none() && self.brokers.len() > 1 {
                dialing = Some(self.dial(next).boxed());
                next += 1;
            }
            let standby = warm.as_mut().map(|link| link.incoming.message());
            tokio::select! {
                message = serving.incoming.message() => match message {
                    Ok(Some(message)) => if let Some(to_agent::Body::Update(update)) = message.body {
                        observed.update(number, update);
                    },
                    removed_sessions => {
                        if let Err(status) = removed_sessions && status.code() == tonic::Code::Unauthenticated {
                            observed.wrong(format!("{} was rejected: {status}", self.node));
                        }
                        serving = match (warm.take(), dialing.take()) {
                            (Some(link), _) => link,
                            (None, Some(dialing)) => dialing.await,
                            (None, None) => self.dial(next).await,
                        };
                        observed.switched(number);
                        serving.begin();
                    }
                },
                Some(message) = OptionFuture::from(standby) => match message {
                    Ok(Some(message)) => if let Some(to_agent::Body::Update(_)) = message.body {
                        observed.wrong(format!("{} received pods on its standby stream", self.node));
                    },
                    _ => warm = None,
                },
                Some(link) = OptionFuture::from(dialing.as_mut()) => {
                    dialing = None;
                    warm = Some(link);
                }
            }
        }
    }

    /// Tries the brokers in turn until one accepts it.
    async fn dial(&self, first: usize) -> StreamLink {
        let mut index = first;
        loop {
            if let Some(broker) = self.brokers.get(index % self.brokers.len())
                && let Ok(link) = self.open(*broker).await
            {
                return link;
            }
            index += 1;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn open(&self, broker: SocketAddr) -> anyhow::Result<StreamLink> {
        // From its own address, as nodes have: brokers limit the connections of one address.
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.address, 0).into())?;
        let stream = socket.connect(broker).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(stream, HOST).await?;
        let (requests, connection) = http2::connect(stream).await?;
        let connection = tokio::spawn(async move {
            // The stream reports its own end.
            let _ = connection.await;
        });
        let (orders, mut receiver) = mpsc::channel(4);
        let hello = from_agent::Body::Hello(v1::Hello {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            token: String::new(),
        });
        orders.try_send(message(hello))?;
        let outgoing = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let origin = http::Uri::from_static("https://broker");
        let mut client = BrokerClient::with_origin(Requests(requests), origin);
        let mut incoming = client.serve(outgoing).await?.into_inner();
        let welcome = incoming.message().await?.context("no message received")?;
        let Some(to_agent::Body::Welcome(_)) = welcome.body else {
            bail!("the stream did not begin with Welcome");
        };
        Ok(StreamLink {
            orders,
            incoming,
            connection,
        })
    }
}

impl StreamLink {
    fn begin(&self) {
        // It fails only if the stream is closed, which the reader notices.
        let _ = self
            .orders
            .try_send(message(from_agent::Body::Activate(v1::Activate {})));
    }
}

fn message(body: from_agent::Body) -> v1::FromAgent {
    v1::FromAgent { body: Some(body) }
}

/// Sends requests on one connection.
#[derive(Clone)]
struct Requests(SendRequest<Body>);

impl tonic::codegen::Service<http::Request<Body>> for Requests {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
