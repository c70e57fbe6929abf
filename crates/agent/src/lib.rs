//! The node agent: the metadata server, and the pod table with the owners of addresses and their
//! authorization.
//!
//! [`app`] connects the parts. A request goes `metadata server → pod table → session → bytes`;
//! changes go `source → pod reconciler → pod table`. Nothing here decides: `rolegate-core` does.

pub mod address_verifier;
pub mod app;
pub mod attachment;
pub mod broker;
pub mod container_credentials;
pub mod credentials;
mod debug;
pub mod decision_source;
pub mod handover;
mod host;
pub mod limits;
pub mod metadata;
pub mod metrics;
pub mod pod_reconciler;
pub mod pod_table;
pub mod runtime_folder;
pub mod token;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
