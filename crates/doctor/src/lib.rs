//! Checks of an installation, for `rolegate doctor`.
//!
//! There are three subjects: a cluster ([`cluster`]), a node ([`node`]) and a pod ([`pod`]). Each
//! gathers facts, which is the only I/O, and evaluates a table of checks. A check is one file and
//! one line in its table: a pure function from the facts to an [`check::Outcome`]. A fact that
//! could not be read makes a check *not checked*, which is never a pass.
//!
//! The crate reads only: it changes neither the cluster nor the node.

pub mod check;
pub mod cluster;
pub mod node;
pub mod pod;
pub mod report;

mod objects;
mod reader;
mod reading;
mod readyz;

use std::time::Duration;

pub use reader::DoctorError;

/// The limits of an examination.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Timeout of one request.
    pub request: Duration,
    /// Time after which facts that were not read are left out.
    pub total: Duration,
}
