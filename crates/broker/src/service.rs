//! The gRPC service for agents: authenticates a stream, then sends its subscription.

mod authn;

use std::mem::take;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt, Stream};
use jiff::Timestamp;
use rolegate_authorizer::recorder::{OutcomeRecorder, RequestOutcome};
use rolegate_kube::freshness::FreshnessSet;
use rolegate_proto::v1::{self, from_agent, outcome, to_agent};
use rolegate_proto::wire::{self, MAX_OUTCOMES, MAX_TO_BROKER};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2::Authentication;
use rolegate_runtime::keyed_limit::{KeyedLimiter, Permit};
use rolegate_runtime::rate::{KeyedRate, Rate};
use rolegate_runtime::tls::ClientNames;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use zeroize::Zeroizing;

use crate::agent_pods::Agents;
use crate::identity::AuthnRejection;
use crate::index::StreamCommand;
use crate::metrics::BrokerMetrics;
use crate::subscription::{ACTIVATION_RATE, MAX_PER_NODE, Subscription};
use crate::token_reviewer::TokenReviewer;
use authn::{AuthnError, REAUTH_INTERVAL, Reauthentication};

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
        })
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
            self.service.parts.metrics.refused("crowded");
            self.auth.close();
            Status::resource_exhausted(format!("the limit of {of} is reached"))
        };
        let mut own = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.service.parts.metrics.refused("begins");
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
        let parts = &self.service.parts;
        let hello = timeout(HELLO_TIMEOUT, incoming.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no first message"))??;
        let Some(from_agent::Body::Hello(mut hello)) = hello.and_then(|it| it.body) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let token = Zeroizing::new(take(&mut hello.token));
        let claimed = wire::name(&hello.node, "a node's name").map_err(malformed)?;
        let version = wire::name(&hello.version, "an agent's version").map_err(malformed)?;
        let by_token = !token.is_empty();
        // Boxed to keep the stream's task small.
        let authenticated = self.authenticate(claimed, &token).boxed().await;
        let authenticated = authenticated.map_err(|why| {
            // A retry must open a new connection.
            self.auth.close_unauthenticated();
            self.reject(&why)
        })?;
        drop(token);
        let permit = self.permit(&authenticated.node)?;
        let welcome = to_agent::Body::Welcome(v1::Welcome {
            broker: parts.name.clone(),
            reauthenticate_seconds: u32::try_from(REAUTH_INTERVAL.as_secs()).unwrap_or(u32::MAX),
            heartbeat_interval_seconds: u32::try_from(HEARTBEAT_INTERVAL.as_secs())
                .unwrap_or(u32::MAX),
        });
        if sender.send(Ok(message(welcome))).await.is_err() {
            return Ok(());
        }
        let mut reauth = Reauthentication::new(&self, &authenticated);
        let index = Registration::take(
            Subscription::new(permit, authenticated.pod_uid),
            parts.commands.clone(),
        );
        let subscription = &index.subscription;
        info!(node = %subscription.node, peer = %self.peer, version, "agent connected");
        let over = |why: AuthnError| {
            info!(node = %subscription.node, peer = %self.peer, reason = %why, "agent stream closed");
            self.reject(&why)
        };

        let mut active = false;
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut heartbeat_due = false;
        // The time from which the node may send more.
        let mut paused_until: Option<Instant> = None;
        let mut ending = std::pin::pin!(parts.drain.begun());
        loop {
            let has_changes = active && subscription.has_changes();
            tokio::select! {
                // The end of the stream takes precedence over messages from the agent.
                biased;
                () = subscription.closed.cancelled() => return Err(over(AuthnRejection::Gone.into())),
                () = &mut ending => {
                    return Err(Status::unavailable("this broker is shutting down"));
                }
                why = reauth.end() => return Err(over(why)),
                _ = heartbeat.tick() => heartbeat_due = true,
                permit = sender.reserve(), if has_changes || heartbeat_due => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if take(&mut heartbeat_due) {
                        permit.send(Ok(message(to_agent::Body::Heartbeat(self.heartbeat()))));
                    } else if let Some(update) = subscription.take(parts.recorder.ledger(), parts.clock.now()) {
                        permit.send(Ok(message(to_agent::Body::Update(update))));
                    }
                }
                () = sleep_until(paused_until.unwrap_or_else(Instant::now)), if paused_until.is_some() => {
                    paused_until = None;
                }
                message = incoming.message(), if paused_until.is_none() => {
                    let Some(body) = message?.map(|it| it.body) else {
                        return Ok(());
                    };
                    let wait = self.service.messages.charge(&subscription.node, cost(body.as_ref()));
                    paused_until = (!wait.is_zero()).then(|| Instant::now() + wait);
                    match body {
                        Some(from_agent::Body::Reauthenticate(mut authn)) if by_token => {
                            reauth.show(Zeroizing::new(take(&mut authn.token)));
                        }
                        Some(from_agent::Body::Activate(_)) if !active => {
                            self.may_activate(&subscription.node)?;
                            active = true;
                            index.activate();
                        }
                        Some(from_agent::Body::PrioritizeSession(request)) => subscription.prioritize(request.session),
                        Some(from_agent::Body::Outcomes(outcomes)) => {
                            self.outcomes(subscription, &outcomes.outcomes)?;
                        }
                        // A message of a later version that this broker does not know.
                        None => {}
                        Some(_) => {
                            return Err(Status::invalid_argument("this message is not allowed here"));
                        }
                    }
                }
                () = subscription.changed(), if active => {}
            }
        }
    }

    fn heartbeat(&self) -> v1::Heartbeat {
        let age = self.service.parts.freshness.age();
        v1::Heartbeat {
            staleness_ms: age
                .and_then(|age| u64::try_from(age.as_millis()).ok())
                .unwrap_or(u64::MAX),
        }
    }

    fn outcomes(
        &self,
        subscription: &Subscription,
        outcomes: &[v1::Outcome],
    ) -> Result<(), Status> {
        if outcomes.len() > MAX_OUTCOMES {
            return Err(Status::invalid_argument("too many outcomes in one message"));
        }
        let parts = &self.service.parts;
        let now = parts.clock.now();
        for report in outcomes {
            let outcome = match &report.result {
                Some(outcome::Result::Denied(_)) => RequestOutcome::Denied,
                Some(outcome::Result::Audited(_)) => RequestOutcome::Audited,
                Some(outcome::Result::Failing(_)) => RequestOutcome::Failing,
                Some(outcome::Result::Served(id)) => RequestOutcome::Served {
                    access_key_id: id.as_str().into(),
                },
                None => continue,
            };
            subscription.record(&report.pod_uid, &outcome, &parts.recorder, now);
        }
        Ok(())
    }
}

/// Returns the cost of a message in its node's rate.
fn cost(body: Option<&from_agent::Body>) -> u32 {
    match body {
        Some(from_agent::Body::Outcomes(outcomes)) => {
            u32::try_from(outcomes.outcomes.len()).map_or(u32::MAX, |all| all.max(1))
        }
        _ => 1,
    }
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
