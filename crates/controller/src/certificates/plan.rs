//! Decides from the Secret's content whether a new certificate is needed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use rolegate_runtime::tls::{PairError, check_pair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The last line of a certificate in PEM.
const END: &str = "-----END CERTIFICATE-----";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
/// Maximum number of trusted authorities. All but one are left over from recent renewals.
const MAX_AUTHORITIES: usize = 4;

/// The state of the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It has no pair.
    Nothing,
    /// It has a pair that cannot be used.
    Broken(Fault),
    /// It has a valid pair.
    Works(Current),
}

/// The reason why a pair cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The certificate or its key is invalid.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The authority that signed the certificate is not in the Secret.
    #[error("its authority is not in the Secret")]
    Authority,
    /// The certificate is not valid yet.
    #[error("it is not valid before {0}: check the clocks")]
    Early(Timestamp),
}

/// A valid pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// Start of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// Its DNS names and addresses.
    pub names: BTreeSet<String>,
    /// The trusted authorities: its own and those of previous pairs.
    pub authorities: Authorities,
}

/// Certificates of authorities, each as PEM with its expiry, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorities(Vec<(String, Timestamp)>);

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Keep the pair.
    Keep {
        /// The time of the renewal.
        until: Timestamp,
    },
    /// Issue a new pair.
    Issue(Why),
}

/// The reason for a new pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No pair exists.
    Missing,
    /// The pair cannot be used.
    Broken(Fault),
    /// The certificate lacks a name. It works for the others.
    Names,
    /// Two thirds of its validity have passed. It still works.
    Due,
}

impl Why {
    /// Returns `true` if no working certificate would be replaced.
    pub fn is_urgent(&self) -> bool {
        matches!(self, Self::Missing | Self::Broken(_))
    }

    /// Returns the value of the metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Broken(_) => "broken",
            Self::Names => "names",
            Self::Due => "due",
        }
    }
}

/// Decides what to do about the state found, if the certificate must be valid for `names`.
pub fn plan(now: Timestamp, found: &Found, names: &[String]) -> Action {
    let current = match found {
        Found::Nothing => return Action::Issue(Why::Missing),
        Found::Broken(fault) => return Action::Issue(Why::Broken(fault.clone())),
        Found::Works(current) => current,
    };
    if !names.iter().all(|name| current.names.contains(name)) {
        return Action::Issue(Why::Names);
    }
    let lifetime = current.not_after.duration_since(current.not_before);
    let until = current
        .not_before
        .checked_add(lifetime * 2 / 3)
        .unwrap_or(current.not_after);
    if now < until {
        Action::Keep { until }
    } else {
        Action::Issue(Why::Due)
    }
}

impl Found {
    /// Parses a Secret's content: chain, key and authorities, all as PEM. Each may be missing.
    pub fn read(certificate: &[u8], key: &[u8], authorities: &[u8], now: Timestamp) -> Self {
        if certificate.is_empty() && key.is_empty() {
            return Self::Nothing;
        }
        match Current::read(certificate, key, authorities, now) {
            Ok(current) => Self::Works(current),
            Err(fault) => Self::Broken(fault),
        }
    }
}

impl Current {
    fn read(
        certificate: &[u8],
        key: &[u8],
        authorities: &[u8],
        now: Timestamp,
    ) -> Result<Self, Fault> {
        check_pair(certificate, key, now)?;
        let unreadable = |_| PairError::Certificate;
        let der = CertificateDer::from_pem_slice(certificate).map_err(unreadable)?;
        let (_, leaf) = X509Certificate::from_der(&der).map_err(|_| PairError::Certificate)?;
        let (not_before, not_after) = validity(&leaf).ok_or(PairError::Certificate)?;
        if now < not_before {
            return Err(Fault::Early(not_before));
        }
        let authorities = Authorities::read(authorities, now);
        if !authorities.signed(&leaf) {
            return Err(Fault::Authority);
        }
        Ok(Self {
            not_before,
            not_after,
            names: names(&leaf),
            authorities,
        })
    }
}

impl Authorities {
    /// Parses authorities that have not expired. Malformed ones are dropped, since the API server
    /// rejects the whole bundle for one of them.
    pub fn read(pem: &[u8], now: Timestamp) -> Self {
        let Ok(text) = std::str::from_utf8(pem) else {
            return Self::default();
        };
        let blocks = text.split_inclusive(END).filter_map(|block| {
            let (_, body) = block.split_once(BEGIN)?;
            let pem = format!("{BEGIN}{body}\n");
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
            let (_, certificate) = X509Certificate::from_der(&der).ok()?;
            let (_, end) = validity(&certificate)?;
            (now < end).then_some((pem, end))
        });
        Self(blocks.take(MAX_AUTHORITIES).collect())
    }

    /// Returns the authorities with a new one in front.
    pub fn with(&self, newest: &str, end: Timestamp) -> Self {
        let newest = (newest.to_owned(), end);
        let before = self.0.iter().filter(|(pem, _)| *pem != newest.0).cloned();
        let all = std::iter::once(newest.clone()).chain(before);
        Self(all.take(MAX_AUTHORITIES).collect())
    }

    /// Encodes all as PEM.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|(pem, _)| pem.as_str()).collect()
    }

    /// Returns the number of authorities.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there are no authorities.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `true` if one of them has the issuer's name, which is unique for each of our
    /// authorities.
    fn signed(&self, leaf: &X509Certificate<'_>) -> bool {
        self.0.iter().any(|(pem, _)| {
            let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
                return false;
            };
            let subject = X509Certificate::from_der(&der)
                .map(|(_, authority)| authority.subject().as_raw() == leaf.issuer().as_raw());
            subject.unwrap_or(false)
        })
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Option<(Timestamp, Timestamp)> {
    let validity = certificate.validity();
    let begin = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
    let end = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
    Some((begin, end))
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(name)
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into());
    v4.or_else(|_| v6()).ok()
}
