//! Issues an authority and one certificate, and discards the authority's key: it cannot sign
//! another certificate, and no stored key could.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use zeroize::Zeroizing;

/// Tolerated clock skew of API servers. For short validities, at most a tenth of them.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// A key pair with the authority that signed it, all as PEM.
pub(super) struct Issued {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
    pub(super) not_after: Timestamp,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Issues a serving certificate for `names` (DNS names and addresses), with ECDSA on P-256. It and
/// its authority expire after `life`.
pub(super) fn issue(
    now: Timestamp,
    lifetime: Duration,
    subject: &str,
    names: &[String],
) -> Result<Issued, Error> {
    let not_after = now.checked_add(lifetime).unwrap_or(Timestamp::MAX);
    let not_before = now
        .checked_sub(MAX_CLOCK_SKEW.min(lifetime / 10))
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let params = |names: &[String], common_name: String| -> Result<_, Error> {
        let mut params = CertificateParams::new(names)?;
        // Certificates have a resolution of seconds.
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since_epoch(not_before);
        params.not_after = epoch + since_epoch(not_after);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        Ok(params)
    };

    // A unique name for each authority: with equal names verifiers would have to try each.
    let name = format!("{subject} {}", now.as_microsecond());
    let mut authority = params(&[], name)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = Zeroizing::new(KeyPair::generate()?);
    let certificate = authority.self_signed(&*authority_key)?;
    let issuer = Issuer::from_params(&authority, &*authority_key);

    let mut leaf = params(names, subject.to_owned())?;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = Zeroizing::new(KeyPair::generate()?);
    Ok(Issued {
        authority: certificate.pem(),
        certificate: leaf.signed_by(&*key, &issuer)?.pem(),
        key: Zeroizing::new(key.serialize_pem()),
        not_after,
    })
}

fn since_epoch(when: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(when.as_second()).unwrap_or_default())
}
