//! The service that agents call: who asks is proven, then its stream is fed.

mod proof;

use std::mem::take;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{FutureExt, Stream};
use jiff::Timestamp;
use rolegate_kube::picture::Pictures;
use rolegate_proto::v1::{self, from_agent, notice, to_agent};
use rolegate_proto::wire::{self, MAX_NOTICES, MAX_TO_BROKER};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2::Authentication;
use rolegate_runtime::places::{Place, Places};
use rolegate_runtime::rate::{KeyedRate, Rate};
use rolegate_runtime::tls::ClientNames;
use rolegate_standing::tell::{NoticeOutcome, Tell};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use zeroize::Zeroizing;

use crate::agents::Agents;
use crate::desk::Order;
use crate::feed::{BEGINS, Feed, PER_NODE};
use crate::identity::Refused;
use crate::metrics::BrokerMetrics;
use crate::reviewer::Reviewer;
use proof::{PROOF, Proofs, Unproven};

/// What a client certificate names its node by.
pub const NODE_URI: &str = "rolegate://node/";
/// How long an agent may take for its first message.
const HELLO: Duration = Duration::from_secs(10);
/// How often a stream tells that the broker is alive.
const PULSE: Duration = Duration::from_secs(5);

/// The rate at which messages and notices from one node's agents are read; the rest waits.
const MESSAGES: Rate = Rate {
    burst: 4096.0,
    per_second: 512.0,
};

/// What all streams share.
#[derive(Debug)]
pub struct Service {
    parts: ServiceParts,
    /// Streams of each node.
    places: Places<Arc<str>>,
    /// Connections of each node, whatever addresses they come from.
    connections: Places<Arc<str>>,
    messages: KeyedRate<Arc<str>>,
    begins: KeyedRate<Arc<str>>,
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
    shown: Authentication,
    /// Its place among its node's, once a stream was proven.
    place: Arc<Mutex<Option<Place<Arc<str>>>>>,
}

impl Service {
    /// A service without streams.
    pub fn new(parts: ServiceParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            places: Places::new(PER_NODE),
            connections: Places::new(PER_NODE),
            messages: KeyedRate::new(MESSAGES),
            begins: KeyedRate::new(BEGINS),
        })
    }

    /// What answers one connection.
    pub fn connection(
        self: &Arc<Self>,
        peer: IpAddr,
        names: ClientNames,
        shown: Authentication,
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
            shown,
            place: Arc::default(),
        }
    }
}

impl Connection {
    /// A place for one more stream of the node, which was proven. A connection is of one node, and is
    /// closed where that has as many streams or connections as it may have.
    fn place(&self, node: &Arc<str>) -> Result<Place<Arc<str>>, Status> {
        let crowded = |of: &str| {
            self.service.parts.metrics.refused("crowded");
            self.shown.close();
            Status::resource_exhausted(format!("{of} as many as there may be"))
        };
        let mut own = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if own.as_ref().is_some_and(|own| own.whose() != node) {
            self.shown.close();
            return Err(self.unproven(&Refused::Node.into()));
        }
        if own.is_none() {
            *own = self.service.connections.take(node.clone());
        }
        if own.is_none() {
            return Err(crowded("connections of this node are"));
        }
        drop(own);
        let stream = self.service.places.take(node.clone());
        let stream = stream.ok_or_else(|| crowded("streams of this node are"))?;
        if !self.shown.succeed() {
            return Err(crowded("connections of agents are"));
        }
        Ok(stream)
    }

    /// Takes one more beginning from the node's rate: the desk looks at all of its pods for it.
    fn may_begin(&self, node: &Arc<str>) -> Result<(), Status> {
        if self.service.begins.take(node) {
            return Ok(());
        }
        self.service.parts.metrics.refused("begins");
        Err(Status::resource_exhausted(
            "streams of this node begin too often: try again in a few seconds",
        ))
    }

    /// Serves one stream until it ends.
    async fn attend(
        self,
        mut incoming: Streaming<v1::FromAgent>,
        sender: mpsc::Sender<Result<Box<v1::ToAgent>, Status>>,
    ) -> Result<(), Status> {
        let parts = &self.service.parts;
        let hello = timeout(HELLO, incoming.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no first message"))??;
        let Some(from_agent::Body::Hello(mut hello)) = hello.and_then(|it| it.body) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let token = Zeroizing::new(take(&mut hello.token));
        let claimed = wire::name(&hello.node, "a node's name").map_err(malformed)?;
        let version = wire::name(&hello.version, "an agent's version").map_err(malformed)?;
        let by_token = !token.is_empty();
        // In a box, which goes with the proof: the stream's own task stays small.
        let proven = self.prove(claimed, &token).boxed().await;
        let proven = proven.map_err(|why| {
            // The next try is another connection's.
            self.shown.close_unauthenticated();
            self.unproven(&why)
        })?;
        drop(token);
        let place = self.place(&proven.node)?;
        let welcome = to_agent::Body::Welcome(v1::Welcome {
            broker: parts.name.clone(),
            proof_seconds: u32::try_from(PROOF.as_secs()).unwrap_or(u32::MAX),
            pulse_seconds: u32::try_from(PULSE.as_secs()).unwrap_or(u32::MAX),
        });
        if sender.send(Ok(message(welcome))).await.is_err() {
            return Ok(());
        }
        let mut proofs = Proofs::new(&self, &proven);
        let desk = Seat::take(Feed::new(place, proven.pod_uid), parts.orders.clone());
        let feed = &desk.feed;
        info!(node = %feed.node, peer = %self.peer, version, "an agent is served");
        let over = |why: Unproven| {
            info!(node = %feed.node, peer = %self.peer, reason = %why, "an agent's stream ended");
            self.unproven(&why)
        };

        let mut begun = false;
        let mut pulse = tokio::time::interval(PULSE);
        let mut pulses = false;
        // The time from which the node may send more.
        let mut quiet: Option<Instant> = None;
        let mut ending = std::pin::pin!(parts.drain.begun());
        loop {
            let news = begun && feed.has_news();
            tokio::select! {
                // What ends it goes before what the agent says.
                biased;
                () = feed.closed.cancelled() => return Err(over(Refused::Gone.into())),
                () = &mut ending => {
                    return Err(Status::unavailable("this broker is stopping"));
                }
                why = proofs.end() => return Err(over(why)),
                _ = pulse.tick() => pulses = true,
                permit = sender.reserve(), if news || pulses => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if take(&mut pulses) {
                        permit.send(Ok(message(to_agent::Body::Pulse(self.pulse()))));
                    } else if let Some(update) = feed.take(parts.tell.ledger(), parts.clock.now()) {
                        permit.send(Ok(message(to_agent::Body::Update(update))));
                    }
                }
                () = sleep_until(quiet.unwrap_or_else(Instant::now)), if quiet.is_some() => {
                    quiet = None;
                }
                message = incoming.message(), if quiet.is_none() => {
                    let Some(body) = message?.map(|it| it.body) else {
                        return Ok(());
                    };
                    let wait = self.service.messages.charge(&feed.node, cost(body.as_ref()));
                    quiet = (!wait.is_zero()).then(|| Instant::now() + wait);
                    match body {
                        Some(from_agent::Body::Proof(mut proof)) if by_token => {
                            proofs.show(Zeroizing::new(take(&mut proof.token)));
                        }
                        Some(from_agent::Body::Begin(_)) if !begun => {
                            self.may_begin(&feed.node)?;
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
                () = feed.news(), if begun => {}
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

/// The cost of a message in its node's rate.
fn cost(body: Option<&from_agent::Body>) -> u32 {
    match body {
        Some(from_agent::Body::Notices(notices)) => {
            u32::try_from(notices.notices.len()).map_or(u32::MAX, |all| all.max(1))
        }
        _ => 1,
    }
}

fn malformed(error: wire::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

/// In a box: a channel has room for 32 of them at once, however few may wait in it.
fn message(body: to_agent::Body) -> Box<v1::ToAgent> {
    Box::new(v1::ToAgent { body: Some(body) })
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
    v1::broker_server::BrokerServer::new(connection).max_decoding_message_size(MAX_TO_BROKER)
}
