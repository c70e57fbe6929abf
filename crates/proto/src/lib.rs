//! The protocol between agents and brokers.
//!
//! `proto/` contains the published protocol. [`v1`] and [`kiam`] are generated from it and checked
//! in, so that a build needs no protobuf compiler; a test compares them. [`wire`] converts messages
//! to and from rolegate's types and validates them, since a broker does not trust agents and an
//! agent trusts its broker only within limits.

pub mod client;
mod codec;
pub mod wire;

/// `rolegate.v1`: the protocol between agents and brokers.
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
