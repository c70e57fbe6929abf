//! rolegate's decision logic as pure functions and data.
//!
//! This crate decides whether a workload may assume a role, classifies metadata paths and schedules
//! session refreshes. It does no I/O and has no async runtime and no clock: the current time is an
//! argument, a [`Timestamp`](jiff::Timestamp). The crates above apply its results.

pub mod annotation;
pub mod arn;
pub mod attribution;
pub mod config;
pub mod decision;
pub mod decision_cache;
pub mod document;
pub mod enforcement;
pub mod engine;
pub mod grant;
pub mod labels;
pub mod layer;
pub mod metadata;
pub mod names;
pub mod namespace;
pub mod needs;
pub mod pattern;
pub mod rule_set_builder;
pub mod selector;
pub mod service_account;
pub mod session;
pub mod session_name;
pub mod template_kinds;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
pub mod text;
pub mod token_bucket;
pub mod workload;
