//! What Kubernetes knows, turned into what rolegate decides on: pods become
//! [`Workload`](rolegate_core::workload::Workload)s, namespaces
//! [`Namespace`](rolegate_core::namespace::Namespace)s, both trimmed as they arrive and sent as
//! [`Update`](rolegate_core::workload::Update)s down one channel. A file can stand in for the API
//! server, and Events go the other way.
//!
//! The watches end only with their receiver: whatever the API server does, they keep trying, and
//! say through metrics, a readiness condition and [`picture::PictureAge`] how well it goes.

pub mod client;
pub mod cluster_config;
pub mod config_maps;
pub mod events;
pub mod file;
pub mod grants;
pub mod namespaces;
pub mod node;
pub mod picture;
pub mod policy_status;
pub mod replicated;
pub mod status;
pub mod tls_secret;
pub mod token_review;
pub mod watch;
pub mod workloads;

mod failure;
mod objects;
mod pages;
#[cfg(test)]
mod tests;
mod watchdog;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

pub use failure::chain;

/// The waits between attempts to reach the API server: 0.2 s at first, 5 s at most, with enough
/// jitter that a cluster's agents don't come back all at once.
fn backoff() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_millis(2500))
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
        .map(|wait| wait + Duration::from_millis(100))
}
