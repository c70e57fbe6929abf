//! A line of sessions for a call, fair between namespaces: they take turns, each with the session
//! that it has had in line longest. However many one namespace has in line, another waits for one
//! of them.
//!
//! Joining, leaving and taking cost O(log n).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::session::SessionKey;

/// What tells places in line apart; a later one is higher.
pub(super) type Ticket = u64;

#[derive(Debug, Default)]
pub(super) struct Line {
    namespaces: HashMap<Arc<str>, Queue>,
    /// Whose turn it is, next first.
    turns: BTreeMap<u64, Arc<str>>,
    last_turn: u64,
    /// Since when each is in line.
    since: BTreeSet<(Timestamp, Ticket)>,
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
        queue.keys.insert(ticket, (key, since));
        self.since.insert((since, ticket));
    }

    /// Takes a key out of line.
    pub(super) fn leave(&mut self, namespace: &Arc<str>, ticket: Ticket) {
        let Some(queue) = self.namespaces.get_mut(namespace) else {
            return;
        };
        if let Some((_, since)) = queue.keys.remove(&ticket) {
            self.since.remove(&(since, ticket));
        }
        if queue.keys.is_empty() {
            self.turns.remove(&queue.turn);
            self.namespaces.remove(namespace);
        }
    }

    /// Takes the key whose turn it is.
    pub(super) fn take(&mut self) -> Option<Arc<SessionKey>> {
        let (_, namespace) = self.turns.pop_first()?;
        let queue = self.namespaces.get_mut(&namespace)?;
        let (ticket, (key, since)) = queue.keys.pop_first()?;
        self.since.remove(&(since, ticket));
        if queue.keys.is_empty() {
            self.namespaces.remove(&namespace);
        } else {
            self.last_turn += 1;
            queue.turn = self.last_turn;
            self.turns.insert(queue.turn, namespace);
        }
        Some(key)
    }

    pub(super) fn len(&self) -> usize {
        self.since.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Since when the one is in line that is there longest.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.since.first().map(|(since, _)| *since)
    }
}
