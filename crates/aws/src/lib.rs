//! What rolegate does at AWS: calls to STS, and the node's own metadata service.
//!
//! [`sts`] assumes roles for pods with the process's own credentials and sorts what goes wrong
//! into what is worth trying again and what is not. [`imds`] talks to the node's real metadata
//! service, for ourselves and for what pods may read through us. [`identity`] finds out with both
//! who and where we are. When a call is made, and what is kept, is decided in `rolegate-core`;
//! this crate retries nothing by itself but an expired metadata token.

pub mod chain;
pub mod discovery;
mod failure;
mod http_client;
pub mod identity;
pub mod imds;
pub mod sessions;
pub mod sts;
