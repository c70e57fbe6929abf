//! The gRPC service for agents: authenticates a stream, then sends its subscription.

mod authn;
mod stream;

use std::mem::take;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt, Stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_kube::freshness::FreshnessSet;
use rolegate_proto::v1::{self, from_agent, to_agent};
use rolegate_proto::wire::{self, MAX_TO_BROKER};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2::Authentication;
use rolegate_runtime::keyed_limit::{KeyedLimiter, Permit};
use rolegate_runtime::peer::PeerKey;
use rolegate_runtime::rate::{KeyedRate, Rate};
use rolegate_runtime::tls::ClientNames;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use zeroize::Zeroizing;

use crate::agent_pods::Agents;
use crate::identity::{AuthenticatedNode, AuthnRejection};
use crate::index::StreamCommand;
use crate::metrics::{BEGINS, BrokerMetrics, CROWDED};
use crate::subscription::{ACTIVATION_RATE, MAX_PER_NODE, Subscription};
use crate::token_reviewer::TokenReviewer;
use authn::{REAUTH_INTERVAL, Reauthentication};
use stream::AgentStream;

/// URI prefix that names the node in a client certificate.
pub const NODE_URI: &str = "rolegate://node/";
/// Time limit for an agent's first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between heartbeats on a stream.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The rate at which messages and outcomes from one node's agents are read; the rest waits.
const MESSAGE_RATE: Rate = Rate {
    burst: 4096.0,
    per_second: 512.0,
};

/// The rate of log lines about rejections of one address.
const REJECTION_LOG_RATE: Rate = Rate {
    burst: 1.0,
    per_second: 1.0 / 60.0,
};
/// The rate of log lines about rejections of all addresses, which strangers can change at will.
const ALL_REJECTIONS_LOG_RATE: Rate = Rate {
    burst: 20.0,
    per_second: 1.0,
};

/// State shared by all streams.
#[derive(Debug)]
pub struct Service {
    parts: ServiceParts,
    /// Limit of streams per node.
    permits: KeyedLimiter<Arc<str>>,
    /// Limit of connections per node, whatever addresses they come from.
    connections: KeyedLimiter<Arc<str>>,
    messages: KeyedRate<Arc<str>>,
    activations: KeyedRate<Arc<str>>,
    /// Log lines about rejected peers: of each address, and of all.
    rejections: KeyedRate<PeerKey>,
    all_rejections: KeyedRate<()>,
}

/// The components that the service needs.
#[derive(Debug)]
pub struct ServiceParts {
    /// This replica's name.
    pub name: String,
    /// Validates tokens.
    pub token_reviewer: TokenReviewer,
    /// The agents' pods.
    pub agents: Agents,
    /// Commands to the index.
    pub commands: mpsc::UnboundedSender<StreamCommand>,
    /// Records outcomes as Events, logs and ledger entries.
    pub recorder: OutcomeRecorder,
    /// The freshness of the watches.
    pub freshness: FreshnessSet,
    /// The broker's metrics.
    pub metrics: BrokerMetrics,
    /// The time.
    pub clock: Clock,
    /// The drain of the process.
    pub drain: Drain,
}

/// The service of one connection.
#[derive(Debug, Clone)]
pub struct Connection {
    service: Arc<Service>,
    peer: IpAddr,
    /// Nodes named by the client certificate.
    nodes: Arc<[String]>,
    /// Expiry of the client certificate.
    until: Option<Timestamp>,
    auth: Authentication,
    /// Permit from the node's connection limit, once a stream has authenticated.
    permit: Arc<Mutex<Option<Permit<Arc<str>>>>>,
}

impl Service {
    /// Creates a service without streams.
    pub fn new(parts: ServiceParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            permits: KeyedLimiter::new(MAX_PER_NODE),
            connections: KeyedLimiter::new(MAX_PER_NODE),
            messages: KeyedRate::new(MESSAGE_RATE),
            activations: KeyedRate::new(ACTIVATION_RATE),
            rejections: KeyedRate::new(REJECTION_LOG_RATE),
            all_rejections: KeyedRate::new(ALL_REJECTIONS_LOG_RATE),
        })
    }

    /// Returns whether a rejection of this peer may be logged at a visible level.
    fn may_log_rejection(&self, peer: IpAddr) -> bool {
        // First the address's own limit, so that one address cannot use up that of all.
        self.rejections.take(&PeerKey::of(peer)) && self.all_rejections.take(&())
    }

    /// Builds the service of one connection.
    pub fn connection(
        self: &Arc<Self>,
        peer: IpAddr,
        names: ClientNames,
        auth: Authentication,
    ) -> Connection {
        let nodes = names
            .uris
            .iter()
            .filter_map(|uri| uri.strip_prefix(NODE_URI));
        Connection {
            service: self.clone(),
            peer: peer.to_canonical(),
            nodes: nodes.map(Into::into).collect(),
            until: names.until,
            auth,
            permit: Arc::default(),
        }
    }
}

impl Connection {
    /// Takes a permit for one more stream of the authenticated node. A connection belongs to one
    /// node. It is closed if the node has reached its limit of streams or connections.
    fn permit(&self, node: &Arc<str>) -> Result<Permit<Arc<str>>, Status> {
        let crowded = |of: &str| {
            self.service.parts.metrics.refused(CROWDED);
            self.auth.close();
            Status::resource_exhausted(format!("the limit of {of} is reached"))
        };
        let mut own = self.permit.lock();
        if own.as_ref().is_some_and(|own| own.key() != node) {
            self.auth.close();
            return Err(self.reject(&AuthnRejection::Node.into()));
        }
        if own.is_none() {
            *own = self.service.connections.take(node.clone());
        }
        if own.is_none() {
            return Err(crowded("connections of this node"));
        }
        drop(own);
        let stream = self.service.permits.take(node.clone());
        let stream = stream.ok_or_else(|| crowded("streams of this node"))?;
        if !self.auth.succeed() {
            return Err(crowded("connections of agents"));
        }
        Ok(stream)
    }

    /// Takes an activation from the node's rate, because the index checks all of its pods for each
    /// one.
    fn may_activate(&self, node: &Arc<str>) -> Result<(), Status> {
        if self.service.activations.take(node) {
            return Ok(());
        }
        self.service.parts.metrics.refused(BEGINS);
        Err(Status::resource_exhausted(
            "too many new streams from this node: try again in a few seconds",
        ))
    }

    /// Serves one stream until it ends.
    async fn serve_stream(
        self,
        mut incoming: Streaming<v1::FromAgent>,
        sender: mpsc::Sender<Result<Box<v1::ToAgent>, Status>>,
    ) -> Result<(), Status> {
        let Greeting {
            authenticated,
            version,
            by_token,
        } = self.greet(&mut incoming).await?;
        let permit = self.permit(&authenticated.node)?;
        let welcome = to_agent::Body::Welcome(v1::Welcome {
            broker: self.service.parts.name.clone(),
            reauthenticate_seconds: u32::try_from(REAUTH_INTERVAL.as_secs()).unwrap_or(u32::MAX),
            heartbeat_interval_seconds: u32::try_from(HEARTBEAT_INTERVAL.as_secs())
                .unwrap_or(u32::MAX),
        });
        if sender.send(Ok(message(welcome))).await.is_err() {
            return Ok(());
        }
        let reauth = Reauthentication::new(&self, &authenticated);
        let index = Registration::take(
            Subscription::new(permit, authenticated.pod_uid),
            self.service.parts.commands.clone(),
        );
        info!(node = %index.subscription.node, peer = %self.peer, version, "agent connected");
        AgentStream::new(&self, reauth, by_token, index)
            .run(incoming, sender)
            .await
    }

    /// Reads the first message, and authenticates the agent.
    async fn greet(&self, incoming: &mut Streaming<v1::FromAgent>) -> Result<Greeting, Status> {
        let hello = timeout(HELLO_TIMEOUT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first message"))??;
        let Some(from_agent::Body::Hello(mut hello)) = hello.and_then(|it| it.body) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let token = Zeroizing::new(take(&mut hello.token));
        let claimed = wire::name(&hello.node, "a node's name").map_err(malformed)?;
        let version = wire::name(&hello.version, "an agent's version").map_err(malformed)?;
        // Boxed to keep the stream's task small.
        let authenticated = self
            .authenticate(claimed, &token)
            .boxed()
            .await
            .map_err(|why| {
                // A retry must open a new connection.
                self.auth.close_unauthenticated();
                self.reject(&why)
            })?;
        Ok(Greeting {
            authenticated,
            version: version.to_owned(),
            by_token: !token.is_empty(),
        })
    }
}

/// The start of a stream.
struct Greeting {
    authenticated: AuthenticatedNode,
    version: String,
    /// `true` if the agent authenticated with a token.
    by_token: bool,
}

fn malformed(error: wire::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Boxes a message: a channel allocates 32 slots at once, however small its capacity.
fn message(body: to_agent::Body) -> Box<v1::ToAgent> {
    Box::new(v1::ToAgent { body: Some(body) })
}

/// A stream's registration with the index. Dropping it leaves the index.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) subscription: Arc<Subscription>,
    commands: mpsc::UnboundedSender<StreamCommand>,
}

impl Registration {
    pub(crate) fn take(
        subscription: Subscription,
        commands: mpsc::UnboundedSender<StreamCommand>,
    ) -> Self {
        let subscription = Arc::new(subscription);
        // Sending fails only if the index has exited, and then the process exits.
        let _ = commands.send(StreamCommand::Join(subscription.clone()));
        Self {
            subscription,
            commands,
        }
    }

    pub(crate) fn activate(&self) {
        let _ = self
            .commands
            .send(StreamCommand::Activate(self.subscription.clone()));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = self
            .commands
            .send(StreamCommand::Leave(self.subscription.clone()));
    }
}

/// The messages to an agent and the task that sends them. Dropping it aborts the task.
#[derive(Debug)]
pub struct Outgoing {
    messages: mpsc::Receiver<Result<Box<v1::ToAgent>, Status>>,
    _task: AbortOnDropHandle<()>,
}

impl Stream for Outgoing {
    type Item = Result<v1::ToAgent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.messages.poll_recv(context);
        next.map(|next| next.map(|message| message.map(|message| *message)))
    }
}

#[tonic::async_trait]
impl v1::broker_server::Broker for Connection {
    type ServeStream = Outgoing;

    async fn serve(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Outgoing>, Status> {
        // One message waits in addition to those that the connection has taken, so later messages
        // reflect the latest state.
        let (sender, messages) = mpsc::channel(1);
        let attending = self
            .clone()
            .serve_stream(request.into_inner(), sender.clone());
        let task = tokio::spawn(async move {
            if let Err(status) = attending.await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Outgoing {
            messages,
            _task: AbortOnDropHandle::new(task),
        }))
    }
}

/// Builds the gRPC server of a connection.
pub fn server(connection: Connection) -> v1::broker_server::BrokerServer<Connection> {
    v1::broker_server::BrokerServer::new(connection).max_decoding_message_size(MAX_TO_BROKER)
}
