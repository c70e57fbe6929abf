//! Everything that rolegate decides, as plain functions and plain data.
//!
//! Whether a workload may have a role, what a metadata path means, when a session is fetched
//! again, which packets are redirected: all of it is computed here from arguments. There is no
//! I/O in this crate, no async runtime and no clock; time comes in as a
//! [`Timestamp`](jiff::Timestamp). What is decided here is carried out by the crates above.

pub mod annotation;
pub mod arn;
pub mod attribution;
pub mod config;
pub mod decision;
pub mod document;
pub mod engine;
pub mod grant;
pub mod key_values;
pub mod layer;
pub mod memo;
pub mod metadata;
pub mod namespace;
pub mod needs;
pub mod pattern;
pub mod redirect;
pub mod rulebook;
pub mod selector;
pub mod session;
pub mod session_name;
pub mod workload;
