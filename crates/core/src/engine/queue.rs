//! A queue of sessions to fetch, fair between namespaces: they take turns, each with its session
//! that has waited longest. However many sessions one namespace queues, another waits for only one
//! of them. A session that several namespaces need is queued for each.
//!
//! Joining, leaving and taking cost O(log n).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::session::SessionKey;

/// Identifies a queue entry; later tickets are higher.
pub(super) type Ticket = u64;

/// The two queues of fetches.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Sessions that a pod waits for.
    pub(super) urgent: FairQueue,
    /// All other sessions.
    pub(super) prefetch: FairQueue,
}

impl Queues {
    /// Returns the queue of one urgency.
    pub(super) fn of(&mut self, urgent: bool) -> &mut FairQueue {
        if urgent {
            &mut self.urgent
        } else {
            &mut self.prefetch
        }
    }

    /// Removes and returns the next key, urgent ones first.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, Arc<SessionKey>)> {
        self.urgent.take().or_else(|| self.prefetch.take())
    }

    /// Returns the number of sessions in line.
    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.prefetch.len()
    }
}

#[derive(Debug, Default)]
pub(super) struct FairQueue {
    namespaces: HashMap<Arc<str>, Queue>,
    /// The order of namespaces, next first.
    turns: BTreeMap<u64, Arc<str>>,
    last_turn: u64,
    /// The time since which each session has been queued, and the number of its entries.
    since: BTreeMap<(Timestamp, Ticket), usize>,
}

#[derive(Debug)]
struct Queue {
    turn: u64,
    keys: BTreeMap<Ticket, (Arc<SessionKey>, Timestamp)>,
}

impl FairQueue {
    /// Queues a key for `namespace`, as if since the time `since`.
    pub(super) fn join(
        &mut self,
        namespace: &Arc<str>,
        ticket: Ticket,
        key: Arc<SessionKey>,
        since: Timestamp,
    ) {
        let Self {
            namespaces,
            turns,
            last_turn,
            ..
        } = self;
        let queue = namespaces.entry(namespace.clone()).or_insert_with(|| {
            *last_turn += 1;
            turns.insert(*last_turn, namespace.clone());
            Queue {
                turn: *last_turn,
                keys: BTreeMap::new(),
            }
        });
        if queue.keys.insert(ticket, (key, since)).is_none() {
            *self.since.entry((since, ticket)).or_default() += 1;
        }
    }

    /// Removes a key from the queue.
    pub(super) fn leave(&mut self, namespace: &Arc<str>, ticket: Ticket) {
        let Some(queue) = self.namespaces.get_mut(namespace) else {
            return;
        };
        let left = queue.keys.remove(&ticket);
        if queue.keys.is_empty() {
            self.turns.remove(&queue.turn);
            self.namespaces.remove(namespace);
        }
        if let Some((_, since)) = left {
            self.left((since, ticket));
        }
    }

    /// Removes and returns the next key of the namespace whose turn it is. The key's entries for
    /// other namespaces remain.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, Arc<SessionKey>)> {
        let (_, namespace) = self.turns.pop_first()?;
        let queue = self.namespaces.get_mut(&namespace)?;
        let (ticket, (key, since)) = queue.keys.pop_first()?;
        if queue.keys.is_empty() {
            self.namespaces.remove(&namespace);
        } else {
            self.last_turn += 1;
            queue.turn = self.last_turn;
            self.turns.insert(queue.turn, namespace.clone());
        }
        self.left((since, ticket));
        Some((namespace, key))
    }

    /// Counts one entry of a session less, after it was removed from a namespace's queue.
    fn left(&mut self, session: (Timestamp, Ticket)) {
        if let Some(places) = self.since.get_mut(&session) {
            *places -= 1;
            if *places == 0 {
                self.since.remove(&session);
            }
        }
    }

    /// Returns the number of sessions in line.
    pub(super) fn len(&self) -> usize {
        self.since.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Returns the time since which the oldest session has been queued.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.since.first_key_value().map(|((since, _), _)| *since)
    }
}
