//! The session engine: when each session is asked of STS, as a state machine.
//!
//! `(state, event, now) → actions`. The driver tells the engine what is wanted and how calls
//! ended, and makes the calls that the engine asks for. Secrets never come here: the engine
//! knows when a session lives, not what is in it.
//!
//! - One call in flight for each key, whoever waits; bounded in all, in flight and a second.
//! - What can't be fetched yet waits in line and is never dropped: pods that ask go before
//!   prefetches, and namespaces take turns.
//! - Where STS throttles, calls slow down by half, and recover little by little.
//! - A session is fetched again at 40 to 48 % of its life, by a jitter that depends on the key.
//! - A final error is tried again after 30 s, doubling to 5 min; throttling and time-outs back
//!   off from 1 s to 1 min. [`Event::Changed`] tries a final error at once.
//! - First fetches are charged to a namespace that wants them, so that a tenant that flips annotations
//!   uses up its own allowance and not the account's. A session that several namespaces want has a
//!   place in the line of each, and is fetched as soon as one of them can pay.
//!
//! An event costs O(log n) of the sessions there are, and the fetches that it starts.

mod allowance;
mod backoff;
mod line;
mod options;
mod pace;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::session::{FailureKind, Life, SessionKey};
use allowance::Allowances;
use line::{Lines, Ticket};
pub use options::{Counts, EngineOptions};
use pace::Pace;

/// Why a session is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A pod is new: the scheduler and the API server limit how many of these there are.
    New,
    /// A pod, or a rule on it, changed: whoever owns the pod can do this as often as he likes.
    Change,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// One more workload needs the session. The fetch is charged to `namespace`, or to another one
    /// that wants the same session and can pay earlier.
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
    /// A pod, a rule or the role changed: a final error is worth another try, which is charged to
    /// `namespace`.
    Changed {
        /// The session.
        key: Arc<SessionKey>,
        /// The namespace whose pod causes the call.
        namespace: Arc<str>,
    },
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
    /// At this time, under this number in [`Engine::timers`].
    At(Timestamp, u64),
    /// In line or held, for each of [`Entry::payers`].
    Waiting {
        /// Among those that a pod is waiting for.
        urgent: bool,
        ticket: Ticket,
        /// One of the payers has paid, for all.
        paid: bool,
    },
    /// Being made, or about to be decided.
    InFlight,
}

/// A namespace that wants a session which waits.
#[derive(Debug)]
struct Payer {
    /// The amount it has to pay for the fetch, if it is the one to pay.
    debt: f64,
    /// True if it waits until its allowance suffices; otherwise it is in line.
    held: bool,
}

#[derive(Debug)]
struct Entry {
    users: usize,
    /// The namespace for which it was fetched last, or that wanted it first.
    namespace: Arc<str>,
    next: Next,
    /// Those that want it while it waits.
    payers: BTreeMap<Arc<str>, Payer>,
    /// Since when it is in line or held.
    since: Timestamp,
    life: Option<Life>,
    /// Failures in a row, and the last one's kind.
    failures: u32,
    last: Option<FailureKind>,
}

/// The state of all sessions.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    entries: HashMap<Arc<SessionKey>, Entry>,
    /// The keys of all entries that are [`Next::At`], soonest first; the number tells equal times
    /// apart.
    timers: BTreeMap<(Timestamp, u64), Arc<SessionKey>>,
    /// The last number of timers and tickets.
    serial: u64,
    lines: Lines,
    /// The number of entries that are [`Next::Waiting`].
    waiting: usize,
    in_flight: usize,
    allowances: Allowances,
    pace: Pace,
    /// When there may be another call, where one is in line and only its time has not come.
    paced: Option<Timestamp>,
    /// Sessions and failures that lost their last user, oldest first, by namespace.
    idle: HashMap<Arc<str>, VecDeque<Arc<SessionKey>>>,
}

impl Engine {
    /// An engine without sessions.
    pub fn new(options: EngineOptions) -> Self {
        Self {
            allowances: Allowances::new(options.namespace_burst, options.namespace_rate),
            pace: Pace::new(options.calls_per_second),
            options,
            entries: HashMap::new(),
            timers: BTreeMap::new(),
            serial: 0,
            lines: Lines::default(),
            waiting: 0,
            in_flight: 0,
            paced: None,
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
            Event::Asked(key) => self.hurry(&key, now),
            Event::Changed { key, namespace } => self.changed(&key, namespace, now),
            Event::Fetched(key, life) => self.fetched(&key, life, now, &mut actions),
            Event::Failed(key, kind) => self.failed(&key, kind, now, &mut actions),
            Event::Tick => self.allowances.trim(now),
        }
        self.run_timers(now, &mut actions);
        self.admit(now);
        self.dispatch(now, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is due next.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let timer = self.timers.first_key_value().map(|((time, _), _)| *time);
        let recovered = self.pace.recovered_at();
        let times = [timer, self.allowances.due(), self.paced, recovered];
        times.into_iter().flatten().min()
    }

    /// How it fares.
    pub fn counts(&self, now: Timestamp) -> Counts {
        let lines = [self.lines.urgent.oldest(), self.lines.prefetch.oldest()];
        let oldest = lines.into_iter().flatten().min();
        Counts {
            sessions: self.entries.len(),
            urgent: self.lines.urgent.len(),
            prefetch: self.lines.prefetch.len(),
            held: self.waiting.saturating_sub(self.lines.len()),
            in_flight: self.in_flight,
            oldest_wait: oldest.map_or(SignedDuration::ZERO, |since| {
                since.duration_until(now).max(SignedDuration::ZERO)
            }),
            rate: self.pace.rate(),
        }
    }

    /// What a first fetch costs the namespace.
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
                life: None,
                failures: 0,
                last: None,
            };
            self.entries.insert(key.clone(), entry);
            return self.enqueue(&key, namespace, debt, now);
        };
        entry.users += 1;
        let over = entry.life.is_some_and(|life| !life.is_valid(now));
        match entry.next {
            Next::Waiting { .. } => self.join(&key, namespace, debt),
            Next::At(..) if over && entry.failures == 0 => self.enqueue(&key, namespace, 0.0, now),
            Next::At(..) | Next::InFlight => {}
        }
    }

    /// One more namespace wants a session that waits: it has a place in its line too. The same
    /// namespace pays the least of what it was to pay.
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
            self.allowances.leave(&namespace, (urgent, ticket));
        } else {
            let held = false;
            entry.payers.insert(namespace.clone(), Payer { debt, held });
        }
        let line = self.lines.of(urgent);
        line.join(&namespace, ticket, key.clone(), entry.since);
    }

    fn released(&mut self, key: &Arc<SessionKey>, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        // What STS answered stays until it would be asked again: the next pod of the same workload
        // (a rollout, a CronJob) finds the session, and whoever comes and goes, as a broker's
        // stream may, gets no call ahead of its time after a failure. All else goes at once.
        let keep = entry.life.is_some() || entry.failures > 0;
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
            let unused = |entry: &Entry| entry.users == 0 && entry.next != Next::InFlight;
            if self.entries.get(&key).is_some_and(unused) {
                self.forget(&key, actions);
            }
        }
    }

    /// Removes a session from those that a namespace keeps without a user.
    fn leave_idle(&mut self, namespace: &Arc<str>, key: &Arc<SessionKey>) {
        if let Some(idle) = self.idle.get_mut(namespace) {
            idle.retain(|other| other != key);
            if idle.is_empty() {
                self.idle.remove(namespace);
            }
        }
    }

    fn hurry(&mut self, key: &Arc<SessionKey>, now: Timestamp) {
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
                self.allowances.hurry(namespace, *ticket, now);
            } else {
                self.lines.prefetch.leave(namespace, *ticket);
                let line = &mut self.lines.urgent;
                line.join(namespace, *ticket, key.clone(), entry.since);
            }
        }
    }

    fn changed(&mut self, key: &Arc<SessionKey>, namespace: Arc<str>, now: Timestamp) {
        // Charged again, or changes could be used to make calls without end.
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
        if kind == FailureKind::Throttled {
            self.pace.throttled(now);
        }
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        // Another kind of failure is another trouble, and starts its own row.
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

    /// Puts a key at the end of a namespace's line of prefetches, whatever it was doing.
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
            let line = &mut self.lines.prefetch;
            line.join(&namespace, ticket, key.clone(), now);
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

    /// Takes a key out of timers and lines.
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
                        self.allowances.leave(&namespace, (urgent, ticket));
                    } else {
                        self.lines.of(urgent).leave(&namespace, ticket);
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

    /// Puts in line what a namespace can pay for by now. One pays for all that want it.
    fn admit(&mut self, now: Timestamp) {
        while let Some(key) = self.allowances.next_paid(now) {
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
                    self.allowances.leave(namespace, (*urgent, *ticket));
                    let line = self.lines.of(*urgent);
                    line.join(namespace, *ticket, key.clone(), entry.since);
                }
            }
        }
    }

    /// Starts calls while there is room and time for them, waiting pods first.
    fn dispatch(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.paced = None;
        self.pace.refill(now);
        while self.has_room() {
            if let Err(wait) = self.pace.ready(now) {
                self.paced = Some(now + wait);
                return;
            }
            let Some((namespace, key)) = self.lines.take() else {
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
                let allowances = &mut self.allowances;
                payer.held = !allowances.pay(&namespace, &key, payer.debt, place, now);
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
            self.pace.spend(now);
            actions.push(Action::Fetch(key));
        }
    }

    /// Whether what is first in line may be in flight too.
    fn has_room(&self) -> bool {
        let most = if !self.lines.urgent.is_empty() {
            self.options.in_flight
        } else if !self.lines.prefetch.is_empty() {
            self.options.in_flight.min(self.options.ahead)
        } else {
            return false;
        };
        self.options.in_flight == 0 || self.in_flight < most
    }
}

/// A second, in which most of the engine's times are written.
pub(crate) const fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

#[cfg(test)]
mod tests;
