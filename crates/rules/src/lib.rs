//! The current rules, for all components that make decisions.
//!
//! [`store::RuleStoreWriter`] is the only writer: it applies what sources report about the
//! configuration, grants, namespaces and policies. [`rules::RuleStore`] is the shared handle of
//! readers: each change publishes a new immutable [`snapshot::Snapshot`]. [`watches`] watches a
//! cluster. [`in_force`] logs the rules in force and their source, and [`metrics`] exports them to
//! Prometheus.

pub mod in_force;
pub mod metrics;
pub mod rules;
pub mod snapshot;
pub mod store;
pub mod watches;
