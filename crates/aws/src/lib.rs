//! AWS clients: calls to STS, and the node's own metadata service.
//!
//! [`sts`] assumes roles for pods with the process's own credentials and classifies errors as final
//! or temporary; it is the source of sessions for `rolegate-sessions`. [`imds`] is a client of the node's metadata service, for our own queries and for
//! requests forwarded for pods. [`identity`] uses both to detect the AWS environment.
//! `rolegate-core` decides when a call is made and what is kept; this crate retries nothing but an
//! expired metadata token.

pub mod chain;
pub mod discovery;
mod error;
mod http_client;
pub mod identity;
pub mod imds;
pub mod sts;
