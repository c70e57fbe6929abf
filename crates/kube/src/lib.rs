//! Watches Kubernetes for what rolegate decides on: pods become
//! [`Workload`](rolegate_core::workload::Workload)s, namespaces
//! [`Namespace`](rolegate_core::namespace::Namespace)s, both trimmed on arrival and sent as
//! [`Update`](rolegate_core::workload::Update)s on one channel. A file can replace the API server.
//! The crate also writes Events.
//!
//! Watches end only with their receiver. They retry after every error, and report their state
//! through metrics, a readiness condition and [`freshness::Freshness`].

pub mod client;
pub mod cluster_config;
pub mod config_maps;
pub mod events;
pub mod freshness;
pub mod grants;
pub mod namespaces;
pub mod node;
pub mod policy_status;
pub mod replicated;
pub mod service_accounts;
pub mod status;
pub mod tls_secret;
pub mod token_review;
pub mod watch;
pub mod workloads;
pub mod workloads_file;

mod error;
mod objects;
mod pages;
#[cfg(test)]
mod tests;
mod watch_observer;
mod watch_status;

use std::time::Duration;

use rolegate_runtime::backoff::Backoff;

pub use error::chain;

/// Advice for a cluster whose API server does not know the custom resources.
const INSTALL_ADVICE: &str = "install deploy/crds.yaml";

/// Returns the delays between attempts to reach the API server.
fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}
