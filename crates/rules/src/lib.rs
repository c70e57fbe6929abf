//! The current rules, for all components that make decisions.
//!
//! [`store::RuleStoreWriter`] is the only writer: it applies what sources report about the
//! configuration, grants, namespaces and policies. [`rules::RuleStore`] is the shared handle of
//! readers: each change publishes a new immutable [`snapshot::Snapshot`]. [`follow()`] starts a
//! writer with all of its sources in a cluster, and with the [`service_accounts`] if an endpoint needs them. [`in_force`] describes the rules in force and their
//! source, and [`metrics`] exports them to
//! Prometheus.

mod follow;
pub mod in_force;
pub mod metrics;
mod report;
pub mod rules;
pub mod service_accounts;
pub mod snapshot;
pub mod store;
mod watches;

pub use follow::{
    FollowMetrics, FollowOptions, Purpose, RuleFollower, conditions, follow, from_flags,
};

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
