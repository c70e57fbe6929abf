//! Who decides what pods of this node may have.

use std::sync::Arc;

use arc_swap::Guard;
use jiff::Timestamp;
use rolegate_runtime::clock::Clock;
use rolegate_standing::decider::Decider;
use rolegate_standing::resident::{Decided, Resident};

/// Whoever decides. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub enum Judge {
    /// This agent, by the rules it follows.
    Here(Decider),
    /// The broker: what it said last counts until it says something else.
    Broker(Clock),
}

impl Judge {
    /// What counts for `resident` now.
    pub fn standing(&self, resident: &Resident, now: Timestamp) -> Guard<Arc<Decided>> {
        match self {
            Self::Here(decider) => decider.standing(resident, now),
            Self::Broker(_) => resident.decided.load(),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Here(decider) => decider.now(),
            Self::Broker(clock) => clock.now(),
        }
    }
}
