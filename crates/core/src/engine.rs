//! The session engine, a state machine that schedules calls to STS.
//!
//! `(state, event, now) → actions`. The driver reports which sessions are needed and how calls
//! ended, and makes the calls that the engine requests. Secrets never come here: the engine knows
//! the validity of a session, not its content.
//!
//! - At most one call is in flight for each key, however many callers wait. The total, the calls in
//!   flight and the calls per second are bounded.
//! - A fetch that cannot start yet is queued and never dropped. Fetches that a pod waits for
//!   precede prefetches, and namespaces take turns.
//! - When STS throttles, the rate of calls is halved and recovers gradually.
//! - A session is refreshed at 40 to 48 % of its validity, with jitter derived from its key.
//! - A final error is retried after 30 s, doubling to 5 min. Throttling and timeouts back off from
//!   1 s to 1 min. [`Event::Changed`] retries a final error at once.
//! - First fetches are charged to the namespace that needs them, so a tenant who flips annotations
//!   exhausts its own budget and not the account's quota. A session that several namespaces need is
//!   queued for each of them, and fetched as soon as one can pay.
//!
//! An event costs O(log n) of the number of sessions, plus the fetches that it starts.

mod backoff;
mod namespace_budgets;
mod options;
mod queue;
mod rate_limiter;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::session::{FailureKind, SessionKey, Validity};
use namespace_budgets::NamespaceBudgets;
pub use options::{Counts, EngineOptions};
use queue::{Queues, Ticket};
use rate_limiter::AdaptiveRateLimiter;

/// The reason why a session is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A new pod. The scheduler and the API server limit the number of new pods.
    New,
    /// A change of a pod, or of a rule that applies to it. A pod's owner can cause any number of
    /// changes.
    Change,
}

/// An input of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// One more workload needs the session. The fetch is charged to `namespace`, or to another
    /// namespace that needs the same session and can pay earlier.
    Acquired {
        /// The session.
        key: Arc<SessionKey>,
        /// The namespace to charge for the call.
        namespace: Arc<str>,
        /// The reason for the need.
        cause: Cause,
    },
    /// One workload fewer needs the session.
    Released(Arc<SessionKey>),
    /// A pod is waiting for the session, so its fetch precedes prefetches.
    Prioritized(Arc<SessionKey>),
    /// A pod, a rule or the role changed, so a final error is worth a retry, which is charged to
    /// `namespace`.
    Changed {
        /// The session.
        key: Arc<SessionKey>,
        /// The namespace whose pod causes the call.
        namespace: Arc<str>,
    },
    /// A call returned a session.
    Fetched(Arc<SessionKey>, Validity),
    /// A call failed.
    Failed(Arc<SessionKey>, FailureKind),
    /// Time has passed.
    Tick,
}

/// An instruction to the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Call STS, then report [`Event::Fetched`] or [`Event::Failed`].
    Fetch(Arc<SessionKey>),
    /// Drop the session, since no workload needs it any more.
    Forget(Arc<SessionKey>),
}

/// The state of a key's next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Scheduled for this time, under this number in [`Engine::timers`].
    At(Timestamp, u64),
    /// Waits in the queue, or for budget, of each namespace in [`Entry::payers`].
    Waiting {
        /// True if a pod is waiting for it.
        urgent: bool,
        ticket: Ticket,
        /// True if one of the payers has paid for all.
        paid: bool,
    },
    /// A call is in flight, or the next state is about to be computed.
    InFlight,
}

/// A namespace that needs a waiting session.
#[derive(Debug)]
struct Payer {
    /// The cost charged to this namespace if it pays for the fetch.
    debt: f64,
    /// True if held until the namespace's budget suffices; otherwise the session is queued.
    held: bool,
}

#[derive(Debug)]
struct Entry {
    users: usize,
    /// The namespace that paid for the last fetch, or that needed the session first.
    namespace: Arc<str>,
    next: Next,
    /// The namespaces that need the session while it waits.
    payers: BTreeMap<Arc<str>, Payer>,
    /// The time since which the session has been queued or held.
    since: Timestamp,
    lifetime: Option<Validity>,
    /// The number of consecutive failures of the same kind, and that kind.
    failures: u32,
    last: Option<FailureKind>,
}

/// The state of all sessions.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    entries: HashMap<Arc<SessionKey>, Entry>,
    /// The keys of all entries in state [`Next::At`], soonest first. The number distinguishes equal
    /// times.
    timers: BTreeMap<(Timestamp, u64), Arc<SessionKey>>,
    /// The last number given to a timer or ticket.
    serial: u64,
    queues: Queues,
    /// The number of entries in state [`Next::Waiting`].
    waiting: usize,
    in_flight: usize,
    budgets: NamespaceBudgets,
    rate_limiter: AdaptiveRateLimiter,
    /// The time at which the rate allows another call, if a queued session waits only for that.
    next_call_at: Option<Timestamp>,
    /// Sessions and failures without users, oldest first, by namespace.
    idle: HashMap<Arc<str>, VecDeque<Arc<SessionKey>>>,
}

impl Engine {
    /// Creates an engine without sessions.
    pub fn new(options: EngineOptions) -> Self {
        Self {
            budgets: NamespaceBudgets::new(options.namespace_burst, options.namespace_rate),
            rate_limiter: AdaptiveRateLimiter::new(options.calls_per_second),
            options,
            entries: HashMap::new(),
            timers: BTreeMap::new(),
            serial: 0,
            queues: Queues::default(),
            waiting: 0,
            in_flight: 0,
            next_call_at: None,
            idle: HashMap::new(),
        }
    }

    /// Handles one event and returns the resulting actions.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Acquired {
                key,
                namespace,
                cause,
            } => self.wanted(key, namespace, cause, now),
            Event::Released(key) => self.released(&key, &mut actions),
            Event::Prioritized(key) => self.prioritize(&key, now),
            Event::Changed { key, namespace } => self.changed(&key, namespace, now),
            Event::Fetched(key, lifetime) => self.fetched(&key, lifetime, now, &mut actions),
            Event::Failed(key, kind) => self.failed(&key, kind, now, &mut actions),
            Event::Tick => self.budgets.trim(now),
        }
        self.run_timers(now, &mut actions);
        self.admit(now);
        self.dispatch(now, &mut actions);
        actions
    }

    /// Returns the time at which [`Event::Tick`] is due next.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let timer = self.timers.first_key_value().map(|((time, _), _)| *time);
        let recovered = self.rate_limiter.recovered_at();
        let times = [timer, self.budgets.due(), self.next_call_at, recovered];
        times.into_iter().flatten().min()
    }

    /// Returns the engine's counters.
    pub fn counts(&self, now: Timestamp) -> Counts {
        let oldest = [self.queues.urgent.oldest(), self.queues.prefetch.oldest()];
        let oldest = oldest.into_iter().flatten().min();
        Counts {
            sessions: self.entries.len(),
            urgent: self.queues.urgent.len(),
            prefetch: self.queues.prefetch.len(),
            held: self.waiting.saturating_sub(self.queues.len()),
            in_flight: self.in_flight,
            oldest_wait: oldest.map_or(SignedDuration::ZERO, |since| {
                since.duration_until(now).max(SignedDuration::ZERO)
            }),
            rate: self.rate_limiter.rate(),
        }
    }

    /// Returns the amount charged to a namespace for a first fetch.
    fn cost(&self, cause: Cause) -> f64 {
        match cause {
            Cause::New => 1.0,
            Cause::Change => f64::from(self.options.change_cost),
        }
    }

    fn wanted(&mut self, key: Arc<SessionKey>, namespace: Arc<str>, cause: Cause, now: Timestamp) {
        let debt = self.cost(cause);
        let Some(entry) = self.entries.get_mut(&key) else {
            let entry = Entry {
                users: 1,
                namespace: namespace.clone(),
                next: Next::InFlight,
                payers: BTreeMap::new(),
                since: now,
                lifetime: None,
                failures: 0,
                last: None,
            };
            self.entries.insert(key.clone(), entry);
            return self.enqueue(&key, namespace, debt, now);
        };
        entry.users += 1;
        let over = entry
            .lifetime
            .is_some_and(|lifetime| !lifetime.is_valid(now));
        match entry.next {
            Next::Waiting { .. } => self.join(&key, namespace, debt),
            Next::At(..) if over && entry.failures == 0 => self.enqueue(&key, namespace, 0.0, now),
            Next::At(..) | Next::InFlight => {}
        }
    }

    /// Queues or holds a waiting session for one more namespace. If the namespace is already a
    /// payer, the lower of the two amounts applies.
    fn join(&mut self, key: &Arc<SessionKey>, namespace: Arc<str>, cost: f64) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Next::Waiting {
            urgent,
            ticket,
            paid,
        } = entry.next
        else {
            return;
        };
        let debt = if paid { 0.0 } else { cost };
        if let Some(payer) = entry.payers.get_mut(&namespace) {
            let less = debt < payer.debt;
            payer.debt = payer.debt.min(debt);
            if !less || !std::mem::take(&mut payer.held) {
                return;
            }
            self.budgets.leave(&namespace, (urgent, ticket));
        } else {
            let held = false;
            entry.payers.insert(namespace.clone(), Payer { debt, held });
        }
        let queue = self.queues.of(urgent);
        queue.join(&namespace, ticket, key.clone(), entry.since);
    }

    fn released(&mut self, key: &Arc<SessionKey>, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        // An answer of STS is kept until it would be requested again. The next pod of the same
        // workload (a rollout, a CronJob) then finds the session, and a consumer that reconnects,
        // such as a broker's stream, cannot cause an early retry. Everything else is dropped at
        // once.
        let keep = entry.lifetime.is_some() || entry.failures > 0;
        if entry.users > 0 || entry.next == Next::InFlight {
            return;
        }
        if keep {
            let namespace = entry.namespace.clone();
            self.bound_idle(key, &namespace, actions);
        } else {
            self.forget(key, actions);
        }
    }

    /// Keeps the most recent unused sessions of a namespace and drops the others.
    fn bound_idle(
        &mut self,
        key: &Arc<SessionKey>,
        namespace: &Arc<str>,
        actions: &mut Vec<Action>,
    ) {
        let most = self.options.namespace_idle;
        let idle = self.idle.entry(namespace.clone()).or_default();
        idle.retain(|other| other != key);
        idle.push_back(key.clone());
        let mut over = Vec::new();
        while idle.len() > most {
            over.extend(idle.pop_front());
        }
        for key in over {
            let unused = |entry: &Entry| entry.users == 0 && entry.next != Next::InFlight;
            if self.entries.get(&key).is_some_and(unused) {
                self.forget(&key, actions);
            }
        }
    }

    /// Removes a session from the unused ones of a namespace.
    fn leave_idle(&mut self, namespace: &Arc<str>, key: &Arc<SessionKey>) {
        if let Some(idle) = self.idle.get_mut(namespace) {
            idle.retain(|other| other != key);
            if idle.is_empty() {
                self.idle.remove(namespace);
            }
        }
    }

    fn prioritize(&mut self, key: &Arc<SessionKey>, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let Next::Waiting { urgent, ticket, .. } = &mut entry.next else {
            return;
        };
        if std::mem::replace(urgent, true) {
            return;
        }
        for (namespace, payer) in &entry.payers {
            if payer.held {
                self.budgets.prioritize(namespace, *ticket, now);
            } else {
                self.queues.prefetch.leave(namespace, *ticket);
                let queue = &mut self.queues.urgent;
                queue.join(namespace, *ticket, key.clone(), entry.since);
            }
        }
    }

    fn changed(&mut self, key: &Arc<SessionKey>, namespace: Arc<str>, now: Timestamp) {
        // The retry is charged again; otherwise changes could cause unlimited calls.
        let debt = self.cost(Cause::Change);
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        match entry.next {
            Next::At(..) if entry.last == Some(FailureKind::Final) => {
                self.enqueue(key, namespace, debt, now);
            }
            Next::Waiting { .. } => self.join(key, namespace, debt),
            Next::At(..) | Next::InFlight => {}
        }
    }

    fn fetched(
        &mut self,
        key: &Arc<SessionKey>,
        lifetime: Validity,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.lifetime = Some(lifetime);
        entry.failures = 0;
        entry.last = None;
        if entry.users == 0 && !lifetime.is_valid(now) {
            self.forget(key, actions);
            return;
        }
        let unused = (entry.users == 0).then(|| entry.namespace.clone());
        let at = backoff::refresh_at(key, lifetime).max(now + backoff::MIN_REFRESH_INTERVAL);
        self.schedule(key, at);
        if let Some(namespace) = unused {
            self.bound_idle(key, &namespace, actions);
        }
    }

    fn failed(
        &mut self,
        key: &Arc<SessionKey>,
        kind: FailureKind,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if kind == FailureKind::Throttled {
            self.rate_limiter.throttled(now);
        }
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        // A failure of another kind starts its own backoff sequence.
        entry.failures = if entry.last == Some(kind) {
            entry.failures.saturating_add(1)
        } else {
            1
        };
        entry.last = Some(kind);
        let wait = backoff::after_failure(key, kind, entry.failures, self.options.final_retry);
        let unused = (entry.users == 0).then(|| entry.namespace.clone());
        self.schedule(key, now + wait);
        if let Some(namespace) = unused {
            self.bound_idle(key, &namespace, actions);
        }
    }

    /// Appends a key to a namespace's prefetch queue, whatever its state was.
    fn enqueue(&mut self, key: &Arc<SessionKey>, namespace: Arc<str>, debt: f64, now: Timestamp) {
        self.step_out(key);
        self.serial += 1;
        let ticket = self.serial;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.next = Next::Waiting {
                urgent: false,
                ticket,
                paid: debt <= 0.0,
            };
            entry.since = now;
            let queue = &mut self.queues.prefetch;
            queue.join(&namespace, ticket, key.clone(), now);
            let held = false;
            entry.payers = BTreeMap::from([(namespace, Payer { debt, held })]);
            self.waiting += 1;
        }
    }

    fn schedule(&mut self, key: &Arc<SessionKey>, at: Timestamp) {
        self.step_out(key);
        self.serial += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.next = Next::At(at, self.serial);
            self.timers.insert((at, self.serial), key.clone());
        }
    }

    /// Removes a key from timers and queues.
    fn step_out(&mut self, key: &Arc<SessionKey>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut entry.next, Next::InFlight) {
            Next::At(at, serial) => {
                self.timers.remove(&(at, serial));
            }
            Next::Waiting { urgent, ticket, .. } => {
                self.waiting -= 1;
                for (namespace, payer) in std::mem::take(&mut entry.payers) {
                    if payer.held {
                        self.budgets.leave(&namespace, (urgent, ticket));
                    } else {
                        self.queues.of(urgent).leave(&namespace, ticket);
                    }
                }
            }
            Next::InFlight => {}
        }
    }

    fn forget(&mut self, key: &Arc<SessionKey>, actions: &mut Vec<Action>) {
        self.step_out(key);
        if let Some(entry) = self.entries.remove(key) {
            self.leave_idle(&entry.namespace, key);
            actions.push(Action::Forget(key.clone()));
        }
    }

    fn run_timers(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while let Some(timer) = self.timers.first_entry()
            && timer.key().0 <= now
        {
            let key = timer.remove();
            match self.entries.get(&key) {
                Some(entry) if entry.users == 0 => self.forget(&key, actions),
                Some(entry) => self.enqueue(&key, entry.namespace.clone(), 0.0, now),
                None => {}
            }
        }
    }

    /// Queues the sessions that a namespace can pay for by now. One namespace pays for all that
    /// need the session.
    fn admit(&mut self, now: Timestamp) {
        while let Some(key) = self.budgets.next_paid(now) {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let Next::Waiting {
                urgent,
                ticket,
                paid,
            } = &mut entry.next
            else {
                continue;
            };
            *paid = true;
            for (namespace, payer) in &mut entry.payers {
                payer.debt = 0.0;
                if std::mem::take(&mut payer.held) {
                    self.budgets.leave(namespace, (*urgent, *ticket));
                    let queue = self.queues.of(*urgent);
                    queue.join(namespace, *ticket, key.clone(), entry.since);
                }
            }
        }
    }

    /// Starts calls while the limits allow it, with sessions that a pod waits for first.
    fn dispatch(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.next_call_at = None;
        self.rate_limiter.refill(now);
        while self.has_room() {
            if let Err(wait) = self.rate_limiter.ready(now) {
                self.next_call_at = Some(now + wait);
                return;
            }
            let Some((namespace, key)) = self.queues.take() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let Next::Waiting { urgent, ticket, .. } = entry.next else {
                continue;
            };
            if entry.users == 0 {
                self.forget(&key, actions);
                continue;
            }
            if let Some(payer) = entry.payers.get_mut(&namespace)
                && payer.debt > 0.0
            {
                let place = (urgent, ticket);
                let budgets = &mut self.budgets;
                payer.held = !budgets.pay(&namespace, &key, payer.debt, place, now);
                if payer.held {
                    continue;
                }
            }
            let before = std::mem::replace(&mut entry.namespace, namespace.clone());
            if before != namespace {
                self.leave_idle(&before, &key);
            }
            self.step_out(&key);
            self.in_flight += 1;
            self.rate_limiter.spend(now);
            actions.push(Action::Fetch(key));
        }
    }

    /// Returns true if the first queued session may be in flight as well.
    fn has_room(&self) -> bool {
        let most = if !self.queues.urgent.is_empty() {
            self.options.in_flight
        } else if !self.queues.prefetch.is_empty() {
            self.options.in_flight.min(self.options.ahead)
        } else {
            return false;
        };
        self.options.in_flight == 0 || self.in_flight < most
    }
}

/// A duration in seconds.
pub(crate) const fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

#[cfg(test)]
mod tests;
