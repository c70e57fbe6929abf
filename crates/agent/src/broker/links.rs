//! Two streams to brokers: one that the node is served by, and a warm one that takes its place in a
//! moment when the first ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rolegate_proto::v1::{self, from_agent};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::link::{LinkError, LinkEvent, LinkId, message, run};
use super::{BrokerAge, BrokerOptions};

/// Events that may wait; a stream's flow control does the rest.
const EVENTS: usize = 4;
/// Messages to the broker that may wait.
const ORDERS: usize = 256;
/// The first wait after a try that failed, doubled up to the last, with jitter.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// A stream that lived for so long is dialled anew at once when it ends. One that is ended as soon as
/// it is up is no better than one that can't be opened.
const STEADY: Duration = Duration::from_secs(10);
/// How often a second stream that leads to the same broker as the first tries for another one.
const SPREAD: Duration = Duration::from_secs(20);

/// What the follower hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// The node is served by another stream from now on; what comes is all there is, from the
    /// start.
    Begun,
    /// Of the stream that the node is served by.
    Update(v1::Update),
    /// Of the stream that the node is served by.
    Pulse(u64),
    /// No stream is there to be served by.
    Lost(String),
}

#[derive(Debug)]
struct Link {
    /// Once the broker believes us.
    up: Option<Up>,
    /// How old the broker's picture is, once it has said so.
    age: Option<BrokerAge>,
    orders: mpsc::Sender<v1::FromAgent>,
    task: AbortHandle,
}

/// Where a link leads.
#[derive(Debug)]
struct Up {
    broker: String,
    address: SocketAddr,
    since: Instant,
}

/// Keeps the streams.
#[derive(Debug)]
pub(super) struct Links {
    options: Arc<BrokerOptions>,
    links: HashMap<LinkId, Link>,
    serving: Option<LinkId>,
    tasks: JoinSet<(LinkId, LinkError)>,
    sender: mpsc::Sender<(LinkId, LinkEvent)>,
    events: mpsc::Receiver<(LinkId, LinkEvent)>,
    next: LinkId,
    wait: Duration,
    dial_at: Instant,
    spread_at: Instant,
    /// What was complained of last, so that it is said once.
    complaint: Option<String>,
}

impl Links {
    pub(super) fn new(options: BrokerOptions) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let now = Instant::now();
        Self {
            options: Arc::new(options),
            links: HashMap::new(),
            serving: None,
            tasks: JoinSet::new(),
            sender,
            events,
            next: 0,
            wait: FIRST_WAIT,
            dial_at: now,
            spread_at: now + SPREAD,
            complaint: None,
        }
    }

    /// The next thing that the follower has to know.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            // One after the other, so that the second knows where the first leads.
            let wanting = self.links.len() < 2 && self.links.values().all(|link| link.up.is_some());
            let dial_at = sleep_until(self.dial_at);
            let spread_at = sleep_until(self.spread_at);
            tokio::select! {
                Some((id, event)) = self.events.recv() => {
                    if let Some(heard) = self.heard(id, event) {
                        return heard;
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    let Ok((id, error)) = ended else { continue };
                    if let Some(heard) = self.ended(id, &error) {
                        return heard;
                    }
                }
                () = dial_at, if wanting => self.dial(),
                () = spread_at => self.spread(),
            }
        }
    }

    fn serving(&self) -> Option<&Link> {
        self.serving.and_then(|id| self.links.get(&id))
    }

    /// Sends on the stream that the node is served by; `false` where that can't be done now.
    pub(super) fn send(&self, body: from_agent::Body) -> bool {
        let serving = self.serving();
        serving.is_some_and(|link| link.orders.try_send(message(body)).is_ok())
    }

    /// Whether there is a stream to send on what can wait. Half of its room is for what can't.
    pub(super) fn has_room(&self) -> bool {
        let serving = self.serving();
        serving.is_some_and(|link| link.orders.capacity() > ORDERS / 2)
    }

    /// Ends the stream that the node is served by, since its broker doesn't keep to the protocol.
    pub(super) fn reject(&mut self, why: String) -> Option<Heard> {
        self.leave(&LinkError::Ended(why))
    }

    fn leave(&mut self, why: &LinkError) -> Option<Heard> {
        let id = self.serving?;
        self.links.get(&id)?.task.abort();
        self.ended(id, why)
    }

    fn heard(&mut self, id: LinkId, event: LinkEvent) -> Option<Heard> {
        let serves = self.serving == Some(id);
        match event {
            LinkEvent::Up { broker, address } => {
                if self.complaint.take().is_some() {
                    info!(broker, "a broker serves this node again");
                }
                debug!(broker, "a stream is up");
                let since = Instant::now();
                self.links.get_mut(&id)?.up = Some(Up {
                    broker,
                    address,
                    since,
                });
                match self.serving {
                    None => self.begin(id),
                    Some(_) => None,
                }
            }
            LinkEvent::Update(update) if serves => Some(Heard::Update(update)),
            LinkEvent::Update(_) => None,
            LinkEvent::Pulse(age) => {
                let link = self.links.get_mut(&id)?;
                link.age.get_or_insert_with(BrokerAge::new).heard(age);
                self.leave_stale()
                    .or_else(|| serves.then_some(Heard::Pulse(age)))
            }
        }
    }

    /// Leaves a broker that hears nothing of the cluster any more for the one of the warm stream,
    /// if that does.
    fn leave_stale(&mut self) -> Option<Heard> {
        let age = |link: &Link| link.age.as_ref().map(BrokerAge::age);
        let old = age(self.serving()?)?;
        let young = self.links.values().filter_map(age).min()?;
        // Of two that hear little the younger is no better a moment later.
        if old <= self.options.stale || young > old / 2 {
            return None;
        }
        self.leave(&LinkError::Stale(old))
    }

    fn begin(&mut self, id: LinkId) -> Option<Heard> {
        let link = self.links.get(&id)?;
        let up = link.up.as_ref()?;
        let begin = message(from_agent::Body::Begin(v1::Begin {}));
        // There is room: nothing was sent on it before.
        link.orders.try_send(begin).ok()?;
        self.serving = Some(id);
        info!(broker = up.broker, address = %up.address, "this node is served by a broker");
        Some(Heard::Begun)
    }

    fn ended(&mut self, id: LinkId, error: &LinkError) -> Option<Heard> {
        let link = self.links.remove(&id)?;
        let served = self.serving == Some(id);
        let complaint = error.to_string();
        let up = link.up.as_ref();
        if up.is_some_and(|up| up.since.elapsed() >= STEADY) {
            self.wait = FIRST_WAIT;
            self.dial_at = Instant::now();
        } else {
            self.dial_at = Instant::now() + self.jitter();
            self.wait = (self.wait * 2).min(LAST_WAIT);
        }
        if self.complaint.as_ref() != Some(&complaint) && (served || up.is_none()) {
            warn!(
                broker = up.map(|up| &up.broker),
                reason = complaint,
                "a connection to a broker ended"
            );
            self.complaint = Some(complaint.clone());
        }
        if served {
            self.serving = None;
            let warm = self.links.iter().find(|(_, link)| link.up.is_some());
            if let Some(id) = warm.map(|(id, _)| *id)
                && let Some(heard) = self.begin(id)
            {
                return Some(heard);
            }
        }
        self.serving.is_none().then_some(Heard::Lost(complaint))
    }

    fn jitter(&self) -> Duration {
        self.wait.mul_f64(0.5 + fastrand::f64())
    }

    fn dial(&mut self) {
        let taken: Vec<_> = self
            .links
            .values()
            .filter_map(|link| link.up.as_ref().map(|up| up.address))
            .collect();
        let id = self.next;
        self.next += 1;
        let (orders, receiver) = mpsc::channel(ORDERS);
        let (options, events) = (self.options.clone(), self.sender.clone());
        let sender = orders.clone();
        let task = self.tasks.spawn(async move {
            let error = run(id, &taken, &options, (sender, receiver), &events).await;
            (id, error)
        });
        let link = Link {
            up: None,
            age: None,
            orders,
            task,
        };
        self.links.insert(id, link);
    }

    /// Gives up a warm stream that leads to the broker that serves already: the next may lead to
    /// another one.
    fn spread(&mut self) {
        self.spread_at = Instant::now() + SPREAD + self.jitter();
        let name = |link: &Link| link.up.as_ref().map(|up| up.broker.clone());
        let Some(broker) = self.serving().and_then(name) else {
            return;
        };
        let twin = |(id, link): (&LinkId, &Link)| {
            (Some(*id) != self.serving && name(link).as_ref() == Some(&broker)).then_some(*id)
        };
        if let Some(id) = self.links.iter().find_map(twin) {
            self.links.remove(&id).inspect(|link| link.task.abort());
            self.dial_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests;
