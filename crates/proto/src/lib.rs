//! What agents and brokers say to each other.
//!
//! `proto/` has the protocol as it is published; [`v1`] and [`kiam`] are generated from it and kept
//! in the repository, since a build needs no protobuf compiler then; a test holds them to it.
//! [`wire`] turns messages into what the rest of rolegate works with, and back: whatever comes in
//! is bounded and checked there, for a broker believes no agent and an agent not everything.

pub mod client;
mod codec;
pub mod wire;

/// `rolegate.v1`: agents and brokers.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod v1 {
    include!("generated/rolegate.v1.rs");
}

/// `kiam`: the interface of kiam's server, for kiam's agents.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod kiam {
    include!("generated/kiam.rs");
}

mod secret;
