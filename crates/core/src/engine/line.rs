//! A line of sessions for a call, fair between namespaces: they take turns, each with the session
//! that it has had in line longest. However many one namespace has in line, another waits for one
//! of them. A session that several namespaces want has a place for each of them.
//!
//! Joining, leaving and taking cost O(log n).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::session::SessionKey;

/// What tells places in line apart; a later one is higher.
pub(super) type Ticket = u64;

/// The two lines for a call.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Of sessions that a pod waits for.
    pub(super) urgent: Line,
    /// Of the others.
    pub(super) prefetch: Line,
}

impl Lines {
    /// One of both.
    pub(super) fn of(&mut self, urgent: bool) -> &mut Line {
        if urgent {
            &mut self.urgent
        } else {
            &mut self.prefetch
        }
    }

    /// Takes the key whose turn it is, those that a pod waits for first.
    pub(super) fn take(&mut self) -> Option<(Arc<str>, Arc<SessionKey>)> {
        self.urgent.take().or_else(|| self.prefetch.take())
    }

    /// Returns the number of sessions in line.
    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.prefetch.len()
    }
}

#[derive(Debug, Default)]
pub(super) struct Line {
    namespaces: HashMap<Arc<str>, Queue>,
    /// Whose turn it is, next first.
    turns: BTreeMap<u64, Arc<str>>,
    last_turn: u64,
    /// Since when each session is in line, and in how many places.
    since: BTreeMap<(Timestamp, Ticket), usize>,
}

#[derive(Debug)]
struct Queue {
    turn: u64,
    keys: BTreeMap<Ticket, (Arc<SessionKey>, Timestamp)>,
}

impl Line {
    /// Puts a key in line for `namespace`, where it is since `since`.
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

    /// Takes a key out of line.
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

    /// Takes the key whose turn it is out of the place that it has for the namespace whose turn it
    /// is. It may have others.
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

    /// One place less of a session.
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

    /// Since when the one is in line that is there longest.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.since.first_key_value().map(|((since, _), _)| *since)
    }
}
