//! The source of decisions about this node's pods.

use std::sync::Arc;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_authorizer::authorizer::Authorizer;
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

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Here(authorizer) => authorizer.now(),
            Self::Broker(clock) => clock.now(),
        }
    }
}
