//! Two streams to brokers: an active one, and a standby that replaces it at once when it ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rolegate_proto::v1::{self, from_agent};
use rolegate_runtime::backoff::Backoff;
use rolegate_runtime::staleness::Staleness;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::BrokerOptions;
use super::stream::{StreamError, StreamEvent, StreamId, message, run};

/// Maximum number of queued events. Beyond that, the stream's flow control applies.
const MAX_QUEUED_EVENTS: usize = 4;
/// Maximum number of queued messages to the broker.
const MAX_QUEUED_MESSAGES: usize = 256;
/// The shortest and longest delay between failed attempts.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Minimum lifetime of a stream that is redialed at once when it ends. A stream that ends as soon
/// as it is connected counts as a failed attempt.
const MIN_STABLE_LIFETIME: Duration = Duration::from_secs(10);
/// Interval at which a standby to the same broker as the active stream tries another one.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(20);

/// An event for the broker sync.
#[derive(Debug)]
pub(super) enum PairEvent {
    /// Another stream is active from now on. Its updates contain the complete state.
    Activated,
    /// An update on the active stream.
    Update(v1::Update),
    /// A heartbeat on the active stream.
    Heartbeat(u64),
    /// There is no active stream.
    Lost(String),
}

#[derive(Debug)]
struct Link {
    /// Set once the broker has authenticated this agent.
    up: Option<Connected>,
    /// The staleness of the broker's pod table, once reported.
    staleness: Staleness,
    orders: mpsc::Sender<v1::FromAgent>,
    task: AbortHandle,
}

/// The peer of a stream.
#[derive(Debug)]
struct Connected {
    broker: String,
    address: SocketAddr,
    since: Instant,
}

/// The pair of streams.
#[derive(Debug)]
pub(super) struct StreamPair {
    options: Arc<BrokerOptions>,
    streams: HashMap<StreamId, Link>,
    serving: Option<StreamId>,
    tasks: JoinSet<(StreamId, StreamError)>,
    sender: mpsc::Sender<(StreamId, StreamEvent)>,
    events: mpsc::Receiver<(StreamId, StreamEvent)>,
    next: StreamId,
    backoff: Backoff,
    dial_at: Instant,
    spread_at: Instant,
    /// The last reported error, so that it is logged once.
    last_error: Option<String>,
}

impl StreamPair {
    pub(super) fn new(options: BrokerOptions) -> Self {
        let (sender, events) = mpsc::channel(MAX_QUEUED_EVENTS);
        let now = Instant::now();
        Self {
            options: Arc::new(options),
            streams: HashMap::new(),
            serving: None,
            tasks: JoinSet::new(),
            sender,
            events,
            next: 0,
            backoff: Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY),
            dial_at: now,
            spread_at: now + REBALANCE_INTERVAL,
            last_error: None,
        }
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> PairEvent {
        loop {
            // One after the other, so that the second knows the first one's broker.
            let wanting =
                self.streams.len() < 2 && self.streams.values().all(|stream| stream.up.is_some());
            let dial_at = sleep_until(self.dial_at);
            let spread_at = sleep_until(self.spread_at);
            tokio::select! {
                Some((id, event)) = self.events.recv() => {
                    if let Some(event) = self.on_event(id, event) {
                        return event;
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    let Ok((id, error)) = ended else { continue };
                    if let Some(event) = self.ended(id, &error) {
                        return event;
                    }
                }
                () = dial_at, if wanting => self.dial(),
                () = spread_at => self.spread(),
            }
        }
    }

    fn serving(&self) -> Option<&Link> {
        self.serving.and_then(|id| self.streams.get(&id))
    }

    /// Sends a message on the active stream. Returns `false` if that is not possible now.
    pub(super) fn send(&self, body: from_agent::Body) -> bool {
        let serving = self.serving();
        serving.is_some_and(|stream| stream.orders.try_send(message(body)).is_ok())
    }

    /// Returns whether there is room for messages that can wait. Half of the queue is for those
    /// that cannot.
    pub(super) fn has_room(&self) -> bool {
        let serving = self.serving();
        serving.is_some_and(|stream| stream.orders.capacity() > MAX_QUEUED_MESSAGES / 2)
    }

    /// Ends the active stream, since its broker violates the protocol.
    pub(super) fn reject(&mut self, why: String) -> Option<PairEvent> {
        self.leave(&StreamError::Ended(why))
    }

    fn leave(&mut self, why: &StreamError) -> Option<PairEvent> {
        let id = self.serving?;
        self.streams.get(&id)?.task.abort();
        self.ended(id, why)
    }

    fn on_event(&mut self, id: StreamId, event: StreamEvent) -> Option<PairEvent> {
        let serves = self.serving == Some(id);
        match event {
            StreamEvent::Connected { broker, address } => {
                if self.last_error.take().is_some() {
                    info!(broker, "a broker serves this node again");
                }
                debug!(broker, "stream connected");
                let since = Instant::now();
                self.streams.get_mut(&id)?.up = Some(Connected {
                    broker,
                    address,
                    since,
                });
                match self.serving {
                    None => self.activate(id),
                    Some(_) => None,
                }
            }
            StreamEvent::Update(update) if serves => Some(PairEvent::Update(update)),
            StreamEvent::Update(_) => None,
            StreamEvent::Heartbeat(age) => {
                let stream = self.streams.get(&id)?;
                stream.staleness.update(Duration::from_millis(age));
                self.leave_stale()
                    .or_else(|| serves.then_some(PairEvent::Heartbeat(age)))
            }
        }
    }

    /// Switches from a broker with a stale cluster state to the standby's broker, if that is fresh.
    fn leave_stale(&mut self) -> Option<PairEvent> {
        let age = |stream: &Link| stream.staleness.age();
        let old = age(self.serving()?)?;
        let young = self.streams.values().filter_map(age).min()?;
        // If both are stale, the fresher one is not better for long.
        if old <= self.options.stale || young > old / 2 {
            return None;
        }
        self.leave(&StreamError::Stale(old))
    }

    fn activate(&mut self, id: StreamId) -> Option<PairEvent> {
        let stream = self.streams.get(&id)?;
        let up = stream.up.as_ref()?;
        let activate = message(from_agent::Body::Activate(v1::Activate {}));
        // The queue is empty, since nothing was sent on it before.
        stream.orders.try_send(activate).ok()?;
        self.serving = Some(id);
        info!(broker = up.broker, address = %up.address, "this node is served by a broker");
        Some(PairEvent::Activated)
    }

    fn ended(&mut self, id: StreamId, error: &StreamError) -> Option<PairEvent> {
        let stream = self.streams.remove(&id)?;
        let served = self.serving == Some(id);
        let last_error = error.to_string();
        let up = stream.up.as_ref();
        if up.is_some_and(|up| up.since.elapsed() >= MIN_STABLE_LIFETIME) {
            self.backoff.reset();
            self.dial_at = Instant::now();
        } else {
            self.dial_at = Instant::now() + self.backoff.next_delay();
        }
        if self.last_error.as_ref() != Some(&last_error) && (served || up.is_none()) {
            warn!(
                broker = up.map(|up| &up.broker),
                reason = last_error,
                "broker connection ended"
            );
            self.last_error = Some(last_error.clone());
        }
        if served {
            self.serving = None;
            let warm = self.streams.iter().find(|(_, stream)| stream.up.is_some());
            if let Some(id) = warm.map(|(id, _)| *id)
                && let Some(event) = self.activate(id)
            {
                return Some(event);
            }
        }
        self.serving
            .is_none()
            .then_some(PairEvent::Lost(last_error))
    }

    fn dial(&mut self) {
        let taken: Vec<_> = self
            .streams
            .values()
            .filter_map(|stream| stream.up.as_ref().map(|up| up.address))
            .collect();
        let id = self.next;
        self.next += 1;
        let (orders, receiver) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let (options, events) = (self.options.clone(), self.sender.clone());
        let sender = orders.clone();
        let task = self.tasks.spawn(async move {
            let error = run(id, &taken, &options, (sender, receiver), &events).await;
            (id, error)
        });
        let stream = Link {
            up: None,
            staleness: Staleness::default(),
            orders,
            task,
        };
        self.streams.insert(id, stream);
    }

    /// Ends a standby to the broker that is active already, since the next attempt may reach
    /// another one.
    fn spread(&mut self) {
        let jitter = MIN_RETRY_DELAY.mul_f64(0.5 + fastrand::f64());
        self.spread_at = Instant::now() + REBALANCE_INTERVAL + jitter;
        let name = |stream: &Link| stream.up.as_ref().map(|up| up.broker.clone());
        let Some(broker) = self.serving().and_then(name) else {
            return;
        };
        let twin = |(id, stream): (&StreamId, &Link)| {
            (Some(*id) != self.serving && name(stream).as_ref() == Some(&broker)).then_some(*id)
        };
        if let Some(id) = self.streams.iter().find_map(twin) {
            self.streams
                .remove(&id)
                .inspect(|stream| stream.task.abort());
            self.dial_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests;
