//! The current authorization of each pod: its decision, which is updated by generation, and the
//! session that belongs to it. Standalone agents and the broker use it.
//!
//! [`authorizer`] decides, [`pod`] holds a pod with its decision, [`recorder`] reports the outcomes
//! of requests, `throttle` limits repeated reports, [`ledger`] records which pod received which
//! session, and [`options`] are those of both processes.

pub mod authorizer;
pub mod ledger;
pub mod options;
pub mod pod;
pub mod reconciler;
pub mod recorder;
mod throttle;
pub mod work_queue;
