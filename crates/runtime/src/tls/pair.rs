//! A certificate with its private key, parsed from PEM and validated before it is served.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use rustls::Error;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Maximum size of a chain or a key as PEM, in bytes.
pub const MAX_PEM_BYTES: usize = 64 * 1024;
/// Maximum number of certificates in a chain.
const MAX_CHAIN_CERTIFICATES: usize = 16;

/// The reason why a pair is invalid. No variant shows any of the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The chain or the key is too large.
    #[error("the certificate or its key has more than {MAX_PEM_BYTES} bytes")]
    TooLarge,
    /// The PEM has no certificate.
    #[error("there is no certificate: expected PEM with BEGIN CERTIFICATE")]
    NoCertificate,
    /// A certificate is malformed.
    #[error("the certificate is malformed")]
    Certificate,
    /// The chain has too many certificates.
    #[error("the chain has more than {MAX_CHAIN_CERTIFICATES} certificates")]
    LongChain,
    /// The PEM has no private key.
    #[error("there is no private key: expected PEM with BEGIN PRIVATE KEY, without a password")]
    NoKey,
    /// The private key is malformed, or of an unknown kind.
    #[error("the private key is malformed, or of an unknown type")]
    Key,
    /// The certificate and the key do not match.
    #[error("the private key does not match the certificate")]
    Mismatch,
    /// The certificate has expired.
    #[error("the certificate expired at {0}")]
    Ended(Timestamp),
}

/// Validates a pair, both as PEM, as a [`CertificateStore`](super::CertificateStore) would.
///
/// # Errors
/// Returns [`PairError`] if it is invalid.
pub fn check_pair(certificate: &[u8], key: &[u8], now: Timestamp) -> Result<(), PairError> {
    Pair::parse(certificate, key, now).map(drop)
}

/// A digest that identifies the PEM of a pair.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(certificate: &[u8], key: &[u8]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    // The lengths keep the encoding unambiguous.
    context.update(&certificate.len().to_le_bytes());
    context.update(certificate);
    context.update(key);
    let mut fingerprint = Fingerprint::default();
    for (to, from) in fingerprint.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    fingerprint
}

/// A matching certificate and key.
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) not_after: Timestamp,
    pub(super) fingerprint: Fingerprint,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// Parses a chain, the leaf first, and its key.
    pub(super) fn parse(certificate: &[u8], key: &[u8], now: Timestamp) -> Result<Self, PairError> {
        if certificate.len() > MAX_PEM_BYTES || key.len() > MAX_PEM_BYTES {
            return Err(PairError::TooLarge);
        }
        let chain = chain(certificate)?;
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let not_after = end(leaf).ok_or(PairError::Certificate)?;
        // The parser's error may quote the malformed line.
        let der = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => PairError::NoKey,
            _ => PairError::Key,
        })?;
        let der = Zeroizing::new(der);
        let signing = any_supported_type(&der).map_err(|_| PairError::Key)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|error| match error {
            Error::InconsistentKeys(_) => PairError::Mismatch,
            _ => PairError::Certificate,
        })?;
        if not_after <= now {
            return Err(PairError::Ended(not_after));
        }
        Ok(Self {
            key: Arc::new(certified),
            not_after,
            fingerprint: fingerprint(certificate, key),
        })
    }
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if chain.len() == MAX_CHAIN_CERTIFICATES {
            return Err(PairError::LongChain);
        }
        chain.push(certificate.map_err(|_| PairError::Certificate)?);
    }
    Ok(chain)
}

/// Returns the expiry of each certificate in a PEM that can be parsed.
pub fn expirations(pem: &[u8]) -> impl Iterator<Item = Timestamp> {
    let certificates = CertificateDer::pem_slice_iter(pem).map_while(Result::ok);
    certificates.filter_map(|certificate| end(&certificate))
}

fn end(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(end_of(&certificate))
}

/// Returns the expiry of a certificate. "Never", the last second of the year 9999, exceeds the
/// range of timestamps.
pub(super) fn end_of(certificate: &X509Certificate<'_>) -> Timestamp {
    let end = certificate.validity().not_after.timestamp();
    Timestamp::from_second(end).unwrap_or(Timestamp::MAX)
}
