//! The broker: holds the AWS permissions and the rules for agents that have neither, and sends each
//! agent the authorizations and sessions of its own node's pods.
//!
//! An agent opens a stream and authenticates as its node ([`identity`], [`service`]). The [`index`]
//! knows all pods and updates the stream's [`subscription`], from which changes are sent.
//! `rolegate-core` makes the decisions through `rolegate-authorizer`, as in a standalone agent.
//! [`kiam`] serves kiam's agents during a migration.

pub mod agent_pods;
pub mod app;
pub mod identity;
pub mod index;
pub mod kiam;
pub mod ledger_server;
pub mod metrics;
pub mod node_addresses;
mod peers;
pub mod service;
pub mod subscription;
pub mod token_reviewer;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
