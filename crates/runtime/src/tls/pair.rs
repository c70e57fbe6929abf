//! A certificate with its private key, read from PEM and checked before anybody is served with it.

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

/// The most bytes of a chain or a key as PEM.
pub const MAX_PEM: usize = 64 * 1024;
/// The most certificates of a chain.
const MAX_CHAIN: usize = 16;

/// Why a pair can't be served. None of these shows any of the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The chain or the key is far larger than any.
    #[error("the certificate or its key has more than {MAX_PEM} bytes")]
    TooLarge,
    /// No certificate in the PEM.
    #[error("there is no certificate: PEM with BEGIN CERTIFICATE is expected")]
    NoCertificate,
    /// A certificate that is none.
    #[error("the certificate cannot be read")]
    Certificate,
    /// A chain that nobody needs.
    #[error("the chain has more than {MAX_CHAIN} certificates")]
    LongChain,
    /// No private key in the PEM.
    #[error("there is no private key: PEM with BEGIN PRIVATE KEY, without a password, is expected")]
    NoKey,
    /// A private key that is none, or of a kind that isn't known.
    #[error("the private key cannot be read, or is of an unknown kind")]
    Key,
    /// Two that don't belong together.
    #[error("the private key is not the certificate's")]
    Mismatch,
    /// A certificate that nobody accepts any more.
    #[error("the certificate ended at {0}")]
    Ended(Timestamp),
}

/// Checks a pair as a [`CertificateStore`](super::CertificateStore) would; both as PEM.
///
/// # Errors
/// What is wrong with it.
pub fn check_pair(certificate: &[u8], key: &[u8], now: Timestamp) -> Result<(), PairError> {
    Pair::parse(certificate, key, now).map(drop)
}

/// What tells one pair's PEM from another's.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(certificate: &[u8], key: &[u8]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    // Both lengths are bounded by memory: with them no two pairs read the same.
    context.update(&certificate.len().to_le_bytes());
    context.update(certificate);
    context.update(key);
    let mut fingerprint = Fingerprint::default();
    for (to, from) in fingerprint.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    fingerprint
}

/// A pair that belongs together.
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
    /// Reads a chain, the leaf first, and its key.
    pub(super) fn parse(certificate: &[u8], key: &[u8], now: Timestamp) -> Result<Self, PairError> {
        if certificate.len() > MAX_PEM || key.len() > MAX_PEM {
            return Err(PairError::TooLarge);
        }
        let chain = chain(certificate)?;
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let not_after = end(leaf).ok_or(PairError::Certificate)?;
        // What the parser says may quote the line it stumbled over.
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
        if chain.len() == MAX_CHAIN {
            return Err(PairError::LongChain);
        }
        chain.push(certificate.map_err(|_| PairError::Certificate)?);
    }
    Ok(chain)
}

/// When each certificate of a PEM ends, as far as they can be read.
pub(super) fn ends(pem: &[u8]) -> impl Iterator<Item = Timestamp> {
    let certificates = CertificateDer::pem_slice_iter(pem).map_while(Result::ok);
    certificates.filter_map(|certificate| end(&certificate))
}

fn end(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(end_of(&certificate))
}

/// When a certificate ends. "Never", the last second of the year 9999, is later than there are
/// timestamps.
pub(super) fn end_of(certificate: &X509Certificate<'_>) -> Timestamp {
    let end = certificate.validity().not_after.timestamp();
    Timestamp::from_second(end).unwrap_or(Timestamp::MAX)
}
