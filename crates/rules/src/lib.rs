//! The rules as they are now, for everyone who decides.
//!
//! [`keeper::Keeper`] is the one writer: it takes what sources report about the configuration,
//! grants, namespaces and policies. [`rules::Rules`] are the many readers' handle: each change is
//! a new immutable [`snapshot::Snapshot`], published at once. [`source`] follows a cluster, [`offline`]
//! reads the same objects from manifests. [`in_force`] says which rules count and where they come from,
//! to the log; [`metrics`] says it to Prometheus.

pub mod in_force;
pub mod keeper;
pub mod metrics;
pub mod offline;
pub mod rules;
pub mod snapshot;
pub mod source;
