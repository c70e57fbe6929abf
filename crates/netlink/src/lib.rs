//! Netlink: synchronous requests to the kernel, and its notifications with the detection of lost
//! ones.
//!
//! The redirect and the verification of pods' addresses share this crate. [`Client`] reads routes,
//! neighbors, links and namespace IDs; [`Notifications`] reports changes.

mod client;
mod notifications;

pub use client::{Client, Error, no_response};
pub use notifications::{Notifications, RECEIVE_BUFFER, Reading, Source, messages, readable};
