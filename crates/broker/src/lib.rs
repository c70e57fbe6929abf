//! The broker: holds the AWS rights and the rules for agents that have neither, and gives each what
//! the pods of its own node may have.
//!
//! An agent opens a stream and proves its node ([`identity`], [`service`]). The [`desk`] knows all
//! pods and writes the stream's [`feed`], from which is sent what is news. Which pod may have what
//! is decided by `rolegate-core`, through `rolegate-standing` like in an agent that works alone.
//! [`kiam`] answers kiam's agents while a cluster moves over.

pub mod agents;
pub mod app;
pub mod desk;
pub mod feed;
pub mod hosts;
pub mod identity;
pub mod kiam;
pub mod ledger_page;
pub mod metrics;
mod peers;
pub mod reviewer;
pub mod service;
