//! The admission webhooks: their server, their metrics and the process around them.
//!
//! [`rolegate_review`] evaluates the reviews and computes the changes of pods.

pub mod app;
pub mod injection;
pub mod metrics;
pub mod server;
