//! Tokens as clients send them: compact JSON Web Signatures (RFC 7515).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::claims::{ClaimError, Claims, Identity, TokenRequirements};
use crate::json::{self, JsonError};
use crate::jwks::MAX_KEY_ID_BYTES;
use crate::key::{Algorithm, Key};

/// Maximum length of a token, in bytes. Kubernetes' tokens have about 1,200; the longest names and
/// an RSA key with 8,192 bits make it 4,000.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The reason why a token is refused. The messages are for the pod's owner, and quote nothing of the
/// token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error(
        "the token has more than {MAX_TOKEN_BYTES} bytes: send a projected ServiceAccount token"
    )]
    TooLong,
    /// The token does not have the form of a compact JWS.
    #[error(
        "the token cannot be parsed: send the content of the projected token file, without a prefix \
         or a newline"
    )]
    Form,
    /// The header or the claims are not acceptable JSON.
    #[error("the token's {part} cannot be parsed")]
    Json {
        /// The part of the token: `header` or `claims`.
        part: &'static str,
        /// The reason. It may quote the token, so it is for logs at debug level at most.
        why: JsonError,
    },
    /// The algorithm is not one of [`Algorithm`].
    #[error("the token's algorithm is not one of RS256, ES256, ES384 and ES512")]
    Algorithm,
    /// The header has `crit`, whose extensions Kubernetes does not use.
    #[error("the token's header has critical extensions, which are not supported")]
    Critical,
    /// The header has no `kid`.
    #[error("the token's header names no key: send a token that this cluster's API server issued")]
    NoKeyId,
    /// The token's algorithm is not the key's.
    #[error("the token's algorithm is not the one of the key that it names")]
    OtherAlgorithm,
    /// The signature is wrong.
    #[error("the token's signature is invalid")]
    Signature,
    /// The signature is valid, but a claim is not acceptable.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// A token whose form is valid. Nothing in it is proven.
#[derive(Debug)]
pub struct UnverifiedToken<'t> {
    key_id: Box<str>,
    algorithm: Algorithm,
    /// The text that is signed.
    signed: &'t str,
    payload: &'t str,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// True if the header has the member, whatever its value.
    #[serde(default, deserialize_with = "is_present")]
    crit: bool,
}

fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl<'t> UnverifiedToken<'t> {
    /// Parses a token.
    ///
    /// # Errors
    /// Returns [`TokenError`] if no key of a cluster could verify it.
    pub fn parse(token: &'t [u8]) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let token = std::str::from_utf8(token).map_err(|_| TokenError::Form)?;
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Form)?;
        let header: Header = json::parse(&decode(header)?).map_err(|why| TokenError::Json {
            part: "header",
            why,
        })?;
        let algorithm = Algorithm::parse(&header.alg).ok_or(TokenError::Algorithm)?;
        if header.crit {
            return Err(TokenError::Critical);
        }
        let key_id = header
            .kid
            .filter(|id| (1..=MAX_KEY_ID_BYTES).contains(&id.len()));
        Ok(Self {
            key_id: key_id.ok_or(TokenError::NoKeyId)?.into(),
            algorithm,
            signed,
            payload,
            signature: decode(signature)?,
        })
    }

    /// Returns the `kid` of the key that the token claims to be signed with.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Checks the signature with the key of [`Self::key_id`], and then the claims.
    ///
    /// # Errors
    /// Returns [`TokenError`] with the first reason for a refusal.
    pub fn verify(
        &self,
        key: &Key,
        required: &TokenRequirements<'_>,
    ) -> Result<Identity, TokenError> {
        // Compared before the signature is checked, so that the token cannot choose how its key is
        // used.
        if self.algorithm != key.algorithm() {
            return Err(TokenError::OtherAlgorithm);
        }
        if self.key_id() != key.id() || !key.has_signed(self.signed.as_bytes(), &self.signature) {
            return Err(TokenError::Signature);
        }
        // Parsed after the signature, so that strangers cannot make this process parse claims.
        let claims: Claims =
            json::parse(&decode(self.payload)?).map_err(|why| TokenError::Json {
                part: "claims",
                why,
            })?;
        Ok(claims.check(required)?)
    }
}

/// Decodes base64url without padding. Trailing bits that are not zero are refused, so that a token
/// has one spelling.
fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form)
}

#[cfg(test)]
mod tests;
