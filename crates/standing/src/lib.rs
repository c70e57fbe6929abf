//! What each pod may have now: its decision, kept up to date by generation, and the session that
//! goes with it. Whoever hands out credentials, or passes them on to who does, works with this:
//! agents that decide for themselves, and the broker.
//!
//! [`decider`] decides, [`resident`] is a pod with what was decided, [`tell`] says what came of it
//! and [`ledger`] remembers whose session is whose.

pub mod decider;
pub mod ledger;
mod pace;
pub mod resident;
pub mod tell;
