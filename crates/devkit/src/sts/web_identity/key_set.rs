//! The choice of a key from a JSON Web Key Set (RFC 7517), and the verification of a signature.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    EcdsaVerificationAlgorithm, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

use super::super::Refusal;
use super::token::{Algorithm, Token};
use super::{no_key, not_validated};

/// Maximum number of keys of each type.
const MAX_KEYS: usize = 100;
/// The first byte of an uncompressed point of an elliptic curve.
const UNCOMPRESSED: u8 = 4;

#[derive(Debug, Deserialize)]
struct KeySet {
    keys: Vec<Key>,
}

/// A key. Its `alg` is not read, since the token's header chooses the algorithm.
#[derive(Debug, Deserialize)]
struct Key {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Value>,
    /// Certificates, of which the first has the same key.
    x5c: Option<Vec<String>>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Verifies the signature of a token with its key in the set.
pub(super) fn verify(set: &Value, token: &Token<'_>) -> Result<(), Refusal> {
    let KeySet { keys } = KeySet::deserialize(set).map_err(|_| no_key())?;
    let key = choose(&keys, token).ok_or_else(no_key)?;
    match token.algorithm {
        Algorithm::Rs256 => key.verify_rsa(&RSA_PKCS1_2048_8192_SHA256, token),
        Algorithm::Rs384 => key.verify_rsa(&RSA_PKCS1_2048_8192_SHA384, token),
        Algorithm::Rs512 => key.verify_rsa(&RSA_PKCS1_2048_8192_SHA512, token),
        Algorithm::Es256 => key.verify_ec("P-256", &ECDSA_P256_SHA256_FIXED, token),
        Algorithm::Es384 => key.verify_ec("P-384", &ECDSA_P384_SHA384_FIXED, token),
        Algorithm::Es512 => key.verify_ec("P-521", &ECDSA_P521_SHA512_FIXED, token),
    }
}

fn choose<'a>(keys: &'a [Key], token: &Token<'_>) -> Option<&'a Key> {
    let key_type = token.algorithm.key_type();
    if keys.iter().filter(|key| key.kty == key_type).count() > MAX_KEYS {
        return None;
    }
    let key = match (token.key_id.as_deref(), keys) {
        (None, [key]) => key.kid.is_some().then_some(key)?,
        (None | Some(""), _) => return None,
        // Of several keys with the same ID, the last one counts.
        (wanted, _) => keys.iter().rev().find(|key| key.kid.as_deref() == wanted)?,
    };
    let for_signatures = key.usage.as_deref().is_none_or(|usage| usage == "sig");
    (key.kty == key_type && for_signatures && key.key_ops.is_none()).then_some(key)
}

impl Key {
    fn verify_rsa(&self, algorithm: &RsaParameters, token: &Token<'_>) -> Result<(), Refusal> {
        let (n, e) = (decoded(self.n.as_ref())?, decoded(self.e.as_ref())?);
        self.check_certificate(&[der_integer(&n), der_integer(&e)].concat())?;
        let key = RsaPublicKeyComponents { n: &n, e: &e };
        let verified = key.verify(algorithm, token.signed.as_bytes(), &token.signature);
        verified.map_err(|_| not_validated())
    }

    fn verify_ec(
        &self,
        curve: &str,
        algorithm: &'static EcdsaVerificationAlgorithm,
        token: &Token<'_>,
    ) -> Result<(), Refusal> {
        if self.crv.as_deref() != Some(curve) {
            return Err(not_validated());
        }
        let (x, y) = (decoded(self.x.as_ref())?, decoded(self.y.as_ref())?);
        let point = [&[UNCOMPRESSED][..], &x, &y].concat();
        self.check_certificate(&point)?;
        UnparsedPublicKey::new(algorithm, &point)
            .verify(token.signed.as_bytes(), &token.signature)
            .map_err(|_| not_validated())
    }

    /// Checks that the first certificate, if there is one, contains this encoded key.
    fn check_certificate(&self, key: &[u8]) -> Result<(), Refusal> {
        let Some(certificates) = &self.x5c else {
            return Ok(());
        };
        let certificate = certificates.first().ok_or_else(no_key)?;
        let certificate = STANDARD.decode(certificate).map_err(|_| no_key())?;
        let same = certificate.windows(key.len()).any(|part| part == key);
        same.then_some(()).ok_or_else(no_key)
    }
}

/// Decodes a parameter that the key must have.
fn decoded(parameter: Option<&String>) -> Result<Vec<u8>, Refusal> {
    let parameter = parameter
        .filter(|text| !text.is_empty())
        .ok_or_else(no_key)?;
    URL_SAFE_NO_PAD.decode(parameter).map_err(|_| no_key())
}

/// Encodes a positive integer in DER.
fn der_integer(bytes: &[u8]) -> Vec<u8> {
    const INTEGER: u8 = 2;
    let sign = bytes.first().is_some_and(|first| *first >= 0x80);
    let length = bytes.len() + usize::from(sign);
    let [.., high, low] = length.to_be_bytes();
    let mut der = vec![INTEGER];
    match length {
        0..0x80 => der.push(low),
        0x80..0x100 => der.extend([0x81, low]),
        _ => der.extend([0x82, high, low]),
    }
    if sign {
        der.push(0);
    }
    der.extend(bytes);
    der
}
