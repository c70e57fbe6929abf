//! Public keys that verify tokens.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Minimum and maximum length of an RSA modulus, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Maximum length of an RSA exponent, in bytes. The usual one, 65537, has 3.
const MAX_RSA_EXPONENT_BYTES: usize = 4;
/// Maximum length of the base64url text of an RSA modulus: 8,192 bits.
const MAX_MODULUS_TEXT: usize = 1366;

/// The algorithm of a signature (RFC 7518, section 3.1): those that Kubernetes signs with. HMAC and
/// `none` are deliberately not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 4] = [Self::Rs256, Self::Es256, Self::Es384, Self::Es512];

    /// Returns the value of `alg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    /// Parses a value of `alg`, which is case-sensitive.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Returns the algorithm of an elliptic curve and the length of its coordinates, in bytes.
    fn of_curve(curve: &str) -> Option<(Self, usize)> {
        match curve {
            "P-256" => Some((Self::Es256, 32)),
            "P-384" => Some((Self::Es384, 48)),
            "P-521" => Some((Self::Es512, 66)),
            _ => None,
        }
    }

    fn ecdsa(self) -> Option<&'static dyn VerificationAlgorithm> {
        match self {
            Self::Rs256 => None,
            Self::Es256 => Some(&ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Some(&ECDSA_P384_SHA384_FIXED),
            Self::Es512 => Some(&ECDSA_P521_SHA512_FIXED),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reason why a key of a set is not used. Tokens that it signed are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The entry is not an object with the members of a JWK.
    #[error("the key is malformed")]
    Malformed,
    /// The key has no `kid`, or a long one.
    #[error("the key has no kid, or one that is too long")]
    KeyId,
    /// Several keys have this `kid`.
    #[error("several keys have this kid")]
    DuplicateKeyId,
    /// The key is not for verifying signatures.
    #[error("the key's use or key_ops does not include the verification of signatures")]
    Use,
    /// The type or curve is unknown.
    #[error("the key's kty or crv is not one that Kubernetes signs with")]
    Type,
    /// The `alg` is not that of the key's type.
    #[error("the key's alg is not the algorithm of its kty and crv")]
    Algorithm,
    /// The RSA key is too small or too large.
    #[error("the RSA modulus must have 2,048 to 8,192 bits")]
    Size,
    /// The numbers of the key are not a public key.
    #[error("the key's numbers are not a public key")]
    Numbers,
}

/// A public key with the one algorithm that it verifies.
pub struct Key {
    id: Box<str>,
    algorithm: Algorithm,
    parsed: ParsedPublicKey,
}

impl Key {
    /// Returns the key's `kid`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the algorithm of the signatures that the key verifies.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns true if `signature` is this key's signature of `message`.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// Creates a key from a JWK.
    pub(crate) fn from_jwk(id: &str, jwk: &Jwk) -> Result<Self, KeyError> {
        jwk.check_use()?;
        let (algorithm, parsed) = match jwk.kty.as_deref() {
            Some("RSA") => (Algorithm::Rs256, jwk.rsa()?),
            Some("EC") => jwk.elliptic_curve()?,
            _ => return Err(KeyError::Type),
        };
        if jwk
            .alg
            .as_deref()
            .is_some_and(|alg| alg != algorithm.as_str())
        {
            return Err(KeyError::Algorithm);
        }
        let id = id.into();
        Ok(Self {
            id,
            algorithm,
            parsed,
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A JSON Web Key (RFC 7517). Certificates in `x5c` are not read: the key set itself is trusted,
/// since it comes from the API server.
#[derive(Deserialize)]
pub(crate) struct Jwk {
    pub(crate) kid: Option<String>,
    kty: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn check_use(&self) -> Result<(), KeyError> {
        let signs = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        let verifies = self
            .key_ops
            .as_ref()
            .is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        (signs && verifies).then_some(()).ok_or(KeyError::Use)
    }

    fn rsa(&self) -> Result<ParsedPublicKey, KeyError> {
        let n = number(self.n.as_deref(), MAX_MODULUS_TEXT)?;
        let e = number(self.e.as_deref(), MAX_MODULUS_TEXT)?;
        let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(KeyError::Size);
        }
        // An even exponent, or 1, is not one of RSA: with 1 the message is its own signature.
        let is_odd = e.last().is_some_and(|last| last % 2 == 1);
        if !is_odd || e == [1] || e.len() > MAX_RSA_EXPONENT_BYTES {
            return Err(KeyError::Numbers);
        }
        RsaPublicKeyComponents { n, e }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .map_err(|_| KeyError::Numbers)
    }

    fn elliptic_curve(&self) -> Result<(Algorithm, ParsedPublicKey), KeyError> {
        let curve = self.crv.as_deref().and_then(Algorithm::of_curve);
        let (algorithm, length) = curve.ok_or(KeyError::Type)?;
        let verifier = algorithm.ecdsa().ok_or(KeyError::Type)?;
        // An uncompressed point (SEC 1, section 2.3.3). aws-lc checks that it is on the curve.
        let mut point = vec![4];
        for coordinate in [&self.x, &self.y] {
            let bytes = decode(coordinate.as_deref(), MAX_MODULUS_TEXT)?;
            if bytes.len() != length {
                return Err(KeyError::Numbers);
            }
            point.extend_from_slice(&bytes);
        }
        let parsed = ParsedPublicKey::new(verifier, &point).map_err(|_| KeyError::Numbers)?;
        Ok((algorithm, parsed))
    }
}

fn decode(text: Option<&str>, max: usize) -> Result<Vec<u8>, KeyError> {
    let text = text.filter(|text| text.len() <= max);
    let text = text.ok_or(KeyError::Numbers)?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Numbers)
}

/// Decodes an unsigned big-endian number. RFC 7518 forbids leading zeros, which some libraries write
/// nevertheless; they do not change the number.
fn number(text: Option<&str>, max: usize) -> Result<Vec<u8>, KeyError> {
    let mut bytes = decode(text, max)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
