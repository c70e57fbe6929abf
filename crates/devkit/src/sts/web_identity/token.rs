//! The parts of a JSON Web Token (RFC 7519) with a signature (RFC 7515).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::super::Refusal;
use super::{invalid, not_validated};

/// A signature algorithm that STS accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    /// Returns the `kty` of its keys.
    pub(super) fn key_type(self) -> &'static str {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 => "RSA",
            Self::Es256 | Self::Es384 | Self::Es512 => "EC",
        }
    }
}

/// A token whose signature is not verified yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// If a claim occurs twice, the last one counts.
    pub(super) claims: Map<String, Value>,
    /// The signed text.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Refusal> {
        let malformed = || {
            invalid(
                "The ID Token provided is not a valid JWT. (You may see this error if you sent an \
                 Access Token)",
            )
        };
        let (signed, signature) = text.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
        let header = object(header).ok_or_else(malformed)?;
        let claims = object(claims).ok_or_else(malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed())?;
        // No extension is known, and RFC 7515 requires that unknown ones are refused.
        if header.contains_key("crit") {
            return Err(malformed());
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(key_id)) => Some(key_id.clone()),
            Some(_) => return Err(malformed()),
        };
        let algorithm = header.get("alg").and_then(Value::as_str);
        let algorithm = algorithm.ok_or_else(malformed)?;
        Ok(Self {
            algorithm: Algorithm::parse(algorithm).ok_or_else(not_validated)?,
            key_id,
            claims,
            signed,
            signature,
        })
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}
