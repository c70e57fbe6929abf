//! The source of decisions about this node's pods.

use std::sync::Arc;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::pod::AssignedLookup;
use rolegate_authorizer::pod::{DecisionRecord, PodEntry};
use rolegate_runtime::clock::Clock;

/// The source of decisions. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub enum DecisionSource {
    /// This agent, with its own rules.
    Here(Authorizer),
    /// The broker. Its last decision applies until it sends another one.
    Broker(Clock),
}

impl DecisionSource {
    /// Returns the current authorization of `entry`.
    pub fn authorization(&self, entry: &PodEntry, now: Timestamp) -> Guard<Arc<DecisionRecord>> {
        match self {
            Self::Here(authorizer) => authorizer.authorization(entry, now),
            Self::Broker(_) => entry.decided.load(),
        }
    }

    /// Returns the role of the service account of `entry` for tokens of an audience; `None` for the
    /// endpoint's default audience.
    pub fn assigned(&self, entry: &PodEntry, audience: Option<&str>) -> AssignedLookup {
        let roles = match self {
            Self::Here(authorizer) => authorizer.assigned_roles(entry),
            Self::Broker(_) => entry.assigned.load_full(),
        };
        roles.map_or(AssignedLookup::NoRole, |roles| roles.find(audience))
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Here(authorizer) => authorizer.now(),
            Self::Broker(clock) => clock.now(),
        }
    }
}
