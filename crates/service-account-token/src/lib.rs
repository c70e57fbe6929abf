//! Verification of projected ServiceAccount tokens, and parsing of the key sets that verify them.
//!
//! A token is a compact JSON Web Signature (RFC 7515) whose payload names a pod and its
//! ServiceAccount. [`UnverifiedToken::parse`] checks its form, [`KeySet::find`] selects the key, and
//! [`UnverifiedToken::verify`] checks the signature and the claims. The crate does no I/O and reads
//! no clock: keys and the time are arguments. It doesn't know whether a pod still exists; callers
//! compare the returned [`Identity`] with the cluster.

mod claims;
mod json;
mod jwks;
mod key;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
mod token;

pub use claims::{CLOCK_SKEW, ClaimError, Identity, Issuer, ObjectRef, TokenRequirements};
pub use json::JsonError;
pub use jwks::{IgnoredKey, KeySet, KeySetError, MAX_KEY_ID_BYTES, MAX_KEY_SET_BYTES, MAX_KEYS};
pub use key::{Algorithm, Key, KeyError};
pub use token::{MAX_TOKEN_BYTES, TokenError, UnverifiedToken};
