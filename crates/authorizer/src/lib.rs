//! The current authorization of each pod: its decision, which is updated by generation, and the
//! session that belongs to it. Standalone agents and the broker use it.
//!
//! [`authorizer`] decides, [`pod`] holds a pod with its decision, [`recorder`] reports the outcomes
//! of requests, `throttle` limits repeated reports, and [`ledger`] records which pod received
//! which session.

pub mod authorizer;
pub mod ledger;
pub mod pod;
pub mod reconciler;
pub mod recorder;
mod throttle;
pub mod work_queue;
