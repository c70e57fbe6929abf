//! The validating admission webhook: its server, its metrics and the process around them.
//!
//! [`rolegate_review`] evaluates the reviews.

pub mod app;
pub mod metrics;
pub mod server;
