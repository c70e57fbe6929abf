//! The results of `rolegate policy` as plain data and text: why a pod may have a role, which
//! manifests would be denied, which pods a rule change affects, and which grants cover the running
//! pods.
//!
//! Nothing is decided here: every result comes from the decision function that agents and admission
//! use. There is no I/O either: documents come in as text or JSON, and results go out as data with
//! renderings.

pub mod check;
pub mod convert;
pub mod document;
pub mod explain;
pub mod injection;
pub mod missing;
pub mod simulate;
pub mod suggest;
pub mod suite;
pub mod vap;

#[cfg(test)]
mod fixtures;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
