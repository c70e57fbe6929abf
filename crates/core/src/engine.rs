//! The session engine: when each session is asked of STS, as a state machine.
//!
//! `(state, event, now) → actions`. The driver tells the engine what is wanted and how calls
//! ended, and makes the calls that the engine asks for. Secrets never come here: the engine
//! knows when a session lives, not what is in it.
//!
//! - One call in flight for each key, whoever waits; a bounded number of calls in flight in all.
//! - A session is fetched again at 40 to 48 % of its life, by a jitter that depends on the key.
//! - A final error is tried again after 30 s, doubling to 5 min; throttling and time-outs back
//!   off from 1 s to 1 min. [`Event::Changed`] tries a final error at once.
//! - First fetches are charged to the namespace that caused them, so that whoever flips
//!   annotations uses up its own allowance and not the account's.

mod allowance;
mod backoff;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::session::{FailureKind, Life, SessionKey};
use allowance::Allowances;

/// Limits of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Most calls in flight at once; those ahead of need take a quarter of it at the most, so that
    /// a pod that is waiting finds room.
    pub in_flight: usize,
    /// First fetches for new pods that a namespace may cause at once; a change of a pod costs as
    /// much as ten of them.
    pub namespace_burst: u32,
    /// The same, a second, in the long run.
    pub namespace_rate: f64,
    /// Sessions of a namespace that are kept though no pod needs them at the moment.
    pub namespace_idle: usize,
    /// The first wait after a final error; doubled up to 5 min, or itself if that is longer.
    pub final_retry: SignedDuration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            in_flight: 64,
            namespace_burst: 600,
            namespace_rate: 5.0,
            namespace_idle: 8,
            final_retry: seconds(30),
        }
    }
}

/// Why a session is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A pod is new: the scheduler and the API server limit how many of these there are.
    New,
    /// A pod, or a rule on it, changed: whoever owns the pod can do this as often as he likes.
    Change,
}

impl Cause {
    /// What a first fetch costs the namespace.
    fn cost(self) -> f64 {
        match self {
            Self::New => 1.0,
            Self::Change => 10.0,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// One more workload needs the session. The fetch is charged to `namespace`.
    Wanted {
        /// The session.
        key: Arc<SessionKey>,
        /// Who causes the call.
        namespace: Arc<str>,
        /// Why.
        cause: Cause,
    },
    /// One workload less needs it.
    Released(Arc<SessionKey>),
    /// A pod is waiting for it now: it goes before prefetches.
    Asked(Arc<SessionKey>),
    /// The pod, a rule or the role changed: a final error is worth another try.
    Changed(Arc<SessionKey>),
    /// A call brought a session.
    Fetched(Arc<SessionKey>, Life),
    /// A call failed.
    Failed(Arc<SessionKey>, FailureKind),
    /// Time went by.
    Tick,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Call STS, then report [`Event::Fetched`] or [`Event::Failed`].
    Fetch(Arc<SessionKey>),
    /// Forget the session: nobody needs it any more.
    Forget(Arc<SessionKey>),
}

/// Where the next call for a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// At this time, which is in [`Engine::timers`].
    At(Timestamp),
    /// In line.
    Queued {
        /// In the line of pods that are waiting.
        urgent: bool,
    },
    /// Being made.
    InFlight,
}

#[derive(Debug)]
struct Entry {
    users: usize,
    namespace: Arc<str>,
    next: Next,
    life: Option<Life>,
    /// Failures in a row, and the last one's kind.
    failures: u32,
    last: Option<FailureKind>,
    /// What the namespace has still to pay for the next fetch.
    debt: f64,
}

/// The state of all sessions.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    entries: HashMap<Arc<SessionKey>, Entry>,
    /// Times of all entries that are [`Next::At`], soonest first; the number tells equal times
    /// apart.
    timers: BTreeSet<(Timestamp, u64)>,
    timer_keys: HashMap<u64, Arc<SessionKey>>,
    serial: u64,
    urgent: VecDeque<Arc<SessionKey>>,
    prefetch: VecDeque<Arc<SessionKey>>,
    in_flight: usize,
    allowances: Allowances,
    /// Sessions that lost their last user, oldest first, by namespace.
    idle: HashMap<Arc<str>, VecDeque<Arc<SessionKey>>>,
}

impl Engine {
    /// An engine without sessions.
    pub fn new(options: EngineOptions) -> Self {
        Self {
            allowances: Allowances::new(options.namespace_burst, options.namespace_rate),
            options,
            entries: HashMap::new(),
            timers: BTreeSet::new(),
            timer_keys: HashMap::new(),
            serial: 0,
            urgent: VecDeque::new(),
            prefetch: VecDeque::new(),
            in_flight: 0,
            idle: HashMap::new(),
        }
    }

    /// Takes one event and tells what is to be done.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Wanted {
                key,
                namespace,
                cause,
            } => self.wanted(key, namespace, cause, now),
            Event::Released(key) => self.released(&key, &mut actions),
            Event::Asked(key) => self.hurry(&key),
            Event::Changed(key) => self.changed(&key),
            Event::Fetched(key, life) => self.fetched(&key, life, now, &mut actions),
            Event::Failed(key, kind) => self.failed(&key, kind, now, &mut actions),
            Event::Tick => self.allowances.trim(now),
        }
        self.run_timers(now, &mut actions);
        self.dispatch(now, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is due next.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.timers.first().map(|(time, _)| *time)
    }

    /// Sessions known, calls in line and calls in flight, for metrics.
    pub fn counts(&self) -> (usize, usize, usize) {
        let queued = self
            .entries
            .values()
            .filter(|entry| matches!(entry.next, Next::Queued { .. }))
            .count();
        (self.entries.len(), queued, self.in_flight)
    }

    fn wanted(&mut self, key: Arc<SessionKey>, namespace: Arc<str>, cause: Cause, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.users += 1;
            let over = entry.life.is_some_and(|life| !life.is_valid(now));
            if over && entry.failures == 0 && matches!(entry.next, Next::At(_)) {
                self.enqueue(&key, false);
            }
            return;
        }
        self.entries.insert(
            key.clone(),
            Entry {
                users: 1,
                namespace,
                next: Next::InFlight,
                life: None,
                failures: 0,
                last: None,
                debt: cause.cost(),
            },
        );
        self.enqueue(&key, false);
    }

    fn released(&mut self, key: &Arc<SessionKey>, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        // A valid session stays until it would be fetched again: the next pod of the same
        // workload (a rollout, a CronJob) finds it. All else goes at once.
        let keep = entry.life.is_some() && entry.failures == 0;
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

    /// Keeps the last few sessions of a namespace that nobody needs, and forgets the others.
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
            let unused = self.entries.get(&key).is_some_and(|entry| entry.users == 0);
            if unused
                && self
                    .entries
                    .get(&key)
                    .is_some_and(|entry| entry.next != Next::InFlight)
            {
                self.forget(&key, actions);
            }
        }
    }

    fn hurry(&mut self, key: &Arc<SessionKey>) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.next == (Next::Queued { urgent: false })
        {
            entry.next = Next::Queued { urgent: true };
            // It stays in the other line too, and is passed over there.
            self.urgent.push_back(key.clone());
        }
    }

    fn changed(&mut self, key: &Arc<SessionKey>) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.last == Some(FailureKind::Final)
            && matches!(entry.next, Next::At(_))
        {
            // Charged again, or changes could be used to make calls without end.
            entry.debt = Cause::Change.cost();
            self.enqueue(key, false);
        }
    }

    fn fetched(
        &mut self,
        key: &Arc<SessionKey>,
        life: Life,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.life = Some(life);
        entry.failures = 0;
        entry.last = None;
        if entry.users == 0 && !life.is_valid(now) {
            self.forget(key, actions);
            return;
        }
        let unused = (entry.users == 0).then(|| entry.namespace.clone());
        let at = backoff::refresh_at(key, life).max(now + backoff::LEAST_REFRESH);
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
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.users == 0 {
            self.forget(key, actions);
            return;
        }
        // Another kind of failure is another trouble, and starts its own row.
        entry.failures = if entry.last == Some(kind) {
            entry.failures.saturating_add(1)
        } else {
            1
        };
        entry.last = Some(kind);
        let wait = backoff::after_failure(key, kind, entry.failures, self.options.final_retry);
        self.schedule(key, now + wait);
    }

    /// Puts a key in line, whatever it was doing.
    fn enqueue(&mut self, key: &Arc<SessionKey>, urgent: bool) {
        self.unschedule(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.next = Next::Queued { urgent };
            let line = if urgent {
                &mut self.urgent
            } else {
                &mut self.prefetch
            };
            line.push_back(key.clone());
        }
    }

    fn schedule(&mut self, key: &Arc<SessionKey>, at: Timestamp) {
        self.unschedule(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.next = Next::At(at);
            self.serial += 1;
            self.timers.insert((at, self.serial));
            self.timer_keys.insert(self.serial, key.clone());
        }
    }

    fn unschedule(&mut self, key: &Arc<SessionKey>) {
        let Some(Next::At(at)) = self.entries.get(key).map(|entry| entry.next) else {
            return;
        };
        let from = (at, 0);
        let to = (at, u64::MAX);
        let found = self
            .timers
            .range(from..=to)
            .find(|(_, serial)| self.timer_keys.get(serial) == Some(key))
            .copied();
        if let Some(timer) = found {
            self.timers.remove(&timer);
            self.timer_keys.remove(&timer.1);
        }
    }

    fn forget(&mut self, key: &Arc<SessionKey>, actions: &mut Vec<Action>) {
        self.unschedule(key);
        if let Some(entry) = self.entries.remove(key) {
            if let Some(idle) = self.idle.get_mut(&entry.namespace) {
                idle.retain(|other| other != key);
                if idle.is_empty() {
                    self.idle.remove(&entry.namespace);
                }
            }
            actions.push(Action::Forget(key.clone()));
        }
    }

    fn run_timers(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while let Some(&(at, serial)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(key) = self.timer_keys.remove(&serial) else {
                continue;
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            // No timer is left to take off.
            entry.next = Next::InFlight;
            if entry.users == 0 {
                self.forget(&key, actions);
            } else {
                self.enqueue(&key, false);
            }
        }
    }

    /// Starts calls while there is room, waiting pods first.
    fn dispatch(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let ahead_of_need = (self.options.in_flight / 4).max(1);
        while self.in_flight < self.options.in_flight {
            let urgent = !self.urgent.is_empty();
            let line = if urgent {
                &mut self.urgent
            } else if self.in_flight < ahead_of_need {
                &mut self.prefetch
            } else {
                return;
            };
            let Some(key) = line.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            // Also passes over what was hurried into the other line or left it since.
            if entry.next != (Next::Queued { urgent }) {
                continue;
            }
            if entry.users == 0 {
                self.forget(&key, actions);
                continue;
            }
            if entry.debt > 0.0 {
                if let Err(wait) = self.allowances.take(&entry.namespace, entry.debt, now) {
                    self.schedule(&key, now + wait);
                    continue;
                }
                entry.debt = 0.0;
            }
            entry.next = Next::InFlight;
            self.in_flight += 1;
            actions.push(Action::Fetch(key));
        }
    }
}

/// A second, in which most of the engine's times are written.
pub(crate) const fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

#[cfg(test)]
mod tests;
