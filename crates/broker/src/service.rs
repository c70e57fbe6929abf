//! The service that agents call: who asks is proven, then its stream is fed.

use std::future::pending;
use std::mem::take;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use jiff::Timestamp;
use rolegate_kube::picture::Pictures;
use rolegate_proto::v1::{self, from_agent, notice, to_agent};
use rolegate_proto::wire::{self, MAX_MESSAGE, MAX_NOTICES};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::places::{Place, Places};
use rolegate_runtime::tls::ClientNames;
use rolegate_standing::tell::{NoticeOutcome, Tell};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use crate::agents::Agents;
use crate::desk::Order;
use crate::feed::{Feed, PER_NODE};
use crate::identity::{Proven, Refused, by_certificate, by_token};
use crate::metrics::BrokerMetrics;
use crate::reviewer::{ReviewError, Reviewer};

/// What a client certificate names its node by.
pub const NODE_URI: &str = "rolegate://node/";
/// How long an agent may take for its first message.
const HELLO: Duration = Duration::from_secs(10);
/// Within which an agent proves again who it is.
const PROOF: Duration = Duration::from_secs(600);
/// How long a proof may take, with waiting for the watch to show the agent's pod.
const PROVING: Duration = Duration::from_secs(5);
/// How often a stream tells that the broker is alive.
const PULSE: Duration = Duration::from_secs(5);
/// Longest token, bytes.
const MAX_TOKEN: usize = 16 << 10;

/// What all streams share.
#[derive(Debug)]
pub struct Service {
    parts: ServiceParts,
    places: Places<Arc<str>>,
}

/// What a service works with.
#[derive(Debug)]
pub struct ServiceParts {
    /// This replica's name.
    pub name: String,
    /// Asks whose tokens are.
    pub reviewer: Reviewer,
    /// The agents' pods.
    pub agents: Agents,
    /// Where streams report.
    pub orders: mpsc::UnboundedSender<Order>,
    /// Tells owners of pods, and the ledger.
    pub tell: Tell,
    /// How old the picture of the cluster is.
    pub pictures: Pictures,
    /// Counts.
    pub metrics: BrokerMetrics,
    /// The time.
    pub clock: Clock,
    /// The end of the process.
    pub drain: Drain,
}

/// The service of one connection.
#[derive(Debug, Clone)]
pub struct Connection {
    service: Arc<Service>,
    peer: IpAddr,
    /// Nodes that the client's certificate names.
    nodes: Arc<[String]>,
    /// When that certificate ends.
    until: Option<Timestamp>,
}

impl Service {
    /// A service without streams.
    pub fn new(parts: ServiceParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            places: Places::new(PER_NODE),
        })
    }

    /// What answers one connection.
    pub fn connection(self: &Arc<Self>, peer: IpAddr, names: ClientNames) -> Connection {
        let nodes = names
            .uris
            .iter()
            .filter_map(|uri| uri.strip_prefix(NODE_URI));
        Connection {
            service: self.clone(),
            peer: peer.to_canonical(),
            nodes: nodes.map(Into::into).collect(),
            until: names.until,
        }
    }
}

impl Connection {
    /// Whether this connection's other end is the agent of node `claimed`.
    async fn prove(&self, claimed: &str, token: &str) -> Result<Proven, Status> {
        let parts = &self.service.parts;
        let proven = match token.is_empty() {
            true => by_certificate(&self.nodes, self.until, claimed)
                .map_err(|refused| self.refuse(refused)),
            false => self.prove_by_token(claimed, token).await,
        }?;
        debug!(node = %proven.node, peer = %self.peer, broker = parts.name, "agent proven");
        Ok(proven)
    }

    async fn prove_by_token(&self, claimed: &str, token: &str) -> Result<Proven, Status> {
        let parts = &self.service.parts;
        if token.len() > MAX_TOKEN {
            return Err(self.refuse(Refused::Unknown));
        }
        let account = parts.agents.account();
        let reviewed = parts.reviewer.review(token, &account.audience).await;
        let reviewed = reviewed.map_err(|why| {
            warn!(peer = %self.peer, "an agent's token cannot be looked at: {why}");
            Status::unavailable(match why {
                ReviewError::Busy => "the broker looks at too many tokens, try again",
                ReviewError::Api(_) => {
                    "the broker cannot ask the API server about the token, try again"
                }
            })
        })?;
        let mut changes = parts.agents.changes();
        let look = || {
            let uid = reviewed.pod_uid.as_deref();
            let pod = uid.and_then(|uid| parts.agents.get(uid));
            by_token(&reviewed, account, claimed, self.peer, pod.as_deref())
        };
        // The broker's watch may lag behind an agent that has just started.
        let waiting = async {
            loop {
                match look() {
                    Err(refused) if refused.may_pass() => {
                        if changes.changed().await.is_err() {
                            return Err(refused);
                        }
                    }
                    settled => return settled,
                }
            }
        };
        let proven = match timeout(PROVING, waiting).await {
            Ok(settled) => settled,
            Err(_) => look(),
        };
        proven.map_err(|refused| self.refuse(refused))
    }

    fn refuse(&self, refused: Refused) -> Status {
        self.service.parts.metrics.refused(refused.reason());
        info!(peer = %self.peer, "an agent is refused: {refused}");
        Status::unauthenticated(refused.to_string())
    }

    /// A place for one more stream of the node, which was proven.
    fn place(&self, node: Arc<str>) -> Result<Place<Arc<str>>, Status> {
        self.service.places.take(node).ok_or_else(|| {
            self.service.parts.metrics.refused("crowded");
            Status::resource_exhausted("this node has as many streams as it may have")
        })
    }

    /// Serves one stream until it ends.
    async fn attend(
        self,
        mut incoming: Streaming<v1::FromAgent>,
        sender: mpsc::Sender<Result<v1::ToAgent, Status>>,
    ) -> Result<(), Status> {
        let parts = &self.service.parts;
        let hello = timeout(HELLO, incoming.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no first message"))??;
        let Some(from_agent::Body::Hello(mut hello)) = hello.and_then(|it| it.body) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let token = Zeroizing::new(take(&mut hello.token));
        let claimed = wire::name(&hello.node, "a node's name").map_err(malformed)?;
        let by_token = !token.is_empty();
        let proven = self.prove(claimed, &token).await?;
        drop(token);
        let place = self.place(proven.node.clone())?;
        let welcome = to_agent::Body::Welcome(v1::Welcome {
            broker: parts.name.clone(),
            proof_seconds: u32::try_from(PROOF.as_secs()).unwrap_or(u32::MAX),
            pulse_seconds: u32::try_from(PULSE.as_secs()).unwrap_or(u32::MAX),
        });
        if sender.send(Ok(message(welcome))).await.is_err() {
            return Ok(());
        }
        let mut due = Due::of(&proven);
        let desk = Seat::take(Feed::new(place, proven.pod_uid), parts.orders.clone());
        let feed = &desk.feed;
        info!(node = %feed.node, peer = %self.peer, version = hello.version.escape_debug().to_string(), "an agent is served");

        let mut begun = false;
        let mut proving: Option<BoxFuture<'_, Result<Proven, Status>>> = None;
        let mut pulse = tokio::time::interval(PULSE);
        let mut pulses = false;
        let mut ending = std::pin::pin!(parts.drain.begun());
        loop {
            let news = begun && feed.has_news();
            tokio::select! {
                () = feed.closed.cancelled() => {
                    return Err(self.refuse(Refused::Gone));
                }
                () = &mut ending => {
                    return Err(Status::unavailable("this broker is stopping"));
                }
                () = due.passed(&parts.clock) => {
                    return Err(self.refuse(Refused::Ended));
                }
                Some(again) = OptionFuture::from(proving.as_mut()) => {
                    proving = None;
                    // Everything is bound to the node and pod that were proven first.
                    let again: Proven = again?;
                    if again.node != feed.node {
                        return Err(self.refuse(Refused::Node));
                    }
                    if again.pod_uid != feed.pod_uid {
                        return Err(self.refuse(Refused::Gone));
                    }
                    due = Due::of(&again);
                }
                message = incoming.message() => {
                    let Some(body) = message?.map(|it| it.body) else {
                        return Ok(());
                    };
                    match body {
                        Some(from_agent::Body::Proof(mut proof)) if by_token && proving.is_none() => {
                            let token = Zeroizing::new(take(&mut proof.token));
                            let this = &self;
                            let node = feed.node.clone();
                            proving = Some(async move { this.prove(&node, &token).await }.boxed());
                        }
                        Some(from_agent::Body::Begin(_)) if !begun => {
                            begun = true;
                            desk.begin();
                        }
                        Some(from_agent::Body::Asked(asked)) => feed.asked(asked.session),
                        Some(from_agent::Body::Notices(notices)) => {
                            self.notices(feed, &notices.notices)?;
                        }
                        // Of a later version, which knows what an older broker doesn't.
                        None => {}
                        Some(_) => {
                            return Err(Status::invalid_argument("this message has no place here"));
                        }
                    }
                }
                _ = pulse.tick() => pulses = true,
                () = feed.news(), if begun => {}
                permit = sender.reserve(), if news || pulses => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if take(&mut pulses) {
                        permit.send(Ok(message(to_agent::Body::Pulse(self.pulse()))));
                    } else if let Some(update) = feed.take(parts.tell.ledger(), parts.clock.now()) {
                        permit.send(Ok(message(to_agent::Body::Update(update))));
                    }
                }
            }
        }
    }

    fn pulse(&self) -> v1::Pulse {
        let age = self.service.parts.pictures.age();
        v1::Pulse {
            picture_age_ms: age
                .and_then(|age| u64::try_from(age.as_millis()).ok())
                .unwrap_or(u64::MAX),
        }
    }

    fn notices(&self, feed: &Feed, notices: &[v1::Notice]) -> Result<(), Status> {
        if notices.len() > MAX_NOTICES {
            return Err(Status::invalid_argument("too many notices in one message"));
        }
        let parts = &self.service.parts;
        let now = parts.clock.now();
        for notice in notices {
            let outcome = match &notice.outcome {
                Some(notice::Outcome::Denied(_)) => NoticeOutcome::Denied,
                Some(notice::Outcome::Audited(_)) => NoticeOutcome::Audited,
                Some(notice::Outcome::Failing(_)) => NoticeOutcome::Failing,
                Some(notice::Outcome::Served(id)) => NoticeOutcome::Served {
                    access_key_id: id.as_str().into(),
                },
                None => continue,
            };
            feed.notice(&notice.pod_uid, &outcome, &parts.tell, now);
        }
        Ok(())
    }
}

/// Until when a proof counts.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// A token's: it must be shown again by then, for it may have been taken back.
    again: Option<Instant>,
    /// The end of token or certificate, by the time of day, which goes on while a machine sleeps.
    until: Option<Timestamp>,
}

impl Due {
    fn of(proven: &Proven) -> Self {
        let again = Instant::now() + PROOF;
        let lasts = proven.pod_uid.is_none() && proven.until.is_some();
        Self {
            again: (!lasts).then_some(again),
            until: proven.until,
        }
    }

    async fn passed(self, clock: &Clock) {
        let again = OptionFuture::from(self.again.map(sleep_until));
        let until = OptionFuture::from(self.until.map(|until| clock.sleep_until(until)));
        tokio::select! {
            Some(()) = again => {}
            Some(()) = until => {}
            else => pending().await,
        }
    }
}

fn malformed(error: wire::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn message(body: to_agent::Body) -> v1::ToAgent {
    v1::ToAgent { body: Some(body) }
}

/// A stream's seat at the desk, left when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) feed: Arc<Feed>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Seat {
    pub(crate) fn take(feed: Feed, orders: mpsc::UnboundedSender<Order>) -> Self {
        let feed = Arc::new(feed);
        // A send fails only where the desk has ended, and then the process ends.
        let _ = orders.send(Order::Join(feed.clone()));
        Self { feed, orders }
    }

    pub(crate) fn begin(&self) {
        let _ = self.orders.send(Order::Begin(self.feed.clone()));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Leave(self.feed.clone()));
    }
}

/// What is sent on a stream, and the task that sends it: dropped with the connection.
#[derive(Debug)]
pub struct Outgoing {
    messages: mpsc::Receiver<Result<v1::ToAgent, Status>>,
    _task: AbortOnDropHandle<()>,
}

impl Stream for Outgoing {
    type Item = Result<v1::ToAgent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}

#[tonic::async_trait]
impl v1::broker_server::Broker for Connection {
    type ServeStream = Outgoing;

    async fn serve(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Outgoing>, Status> {
        // One message waits beside what the connection has taken: what comes after it is made of
        // how things are then.
        let (sender, messages) = mpsc::channel(1);
        let attending = self.clone().attend(request.into_inner(), sender.clone());
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

/// What answers the requests of a connection.
pub fn server(connection: Connection) -> v1::broker_server::BrokerServer<Connection> {
    v1::broker_server::BrokerServer::new(connection).max_decoding_message_size(MAX_MESSAGE)
}
