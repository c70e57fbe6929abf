//! The claims of a token, and the rules of STS for them.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::super::Refusal;
use super::{invalid, not_validated};

/// The claims that every token must have, in the order in which they are checked.
const REQUIRED: [&str; 5] = ["iss", "sub", "aud", "iat", "exp"];

/// The claims that STS reads.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    audiences: Vec<&'a str>,
    /// The client for which the token was issued, if the audience alone does not say so.
    authorized_party: Option<&'a str>,
    issued_at: Timestamp,
    expires_at: Timestamp,
    not_before: Option<Timestamp>,
}

impl<'a> Claims<'a> {
    pub(super) fn read(claims: &'a Map<String, Value>) -> Result<Self, Refusal> {
        if let Some(name) = REQUIRED.iter().find(|name| !claims.contains_key(**name)) {
            return Err(invalid(format!("Missing a required claim: {name}")));
        }
        let text = |name: &str| match claims.get(name) {
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(not_validated()),
            None => Ok(None),
        };
        let time = |name: &str| claims.get(name).map(timestamp).transpose();
        let audiences = match claims.get("aud") {
            Some(Value::String(audience)) => vec![audience.as_str()],
            Some(Value::Array(audiences)) => {
                let audiences = audiences.iter().map(Value::as_str);
                audiences.collect::<Option<_>>().ok_or_else(not_validated)?
            }
            _ => return Err(not_validated()),
        };
        if audiences.is_empty() {
            return Err(invalid("Claim is not allowed to be empty: aud"));
        }
        Ok(Self {
            issuer: text("iss")?.unwrap_or_default(),
            subject: text("sub")?.unwrap_or_default(),
            audiences,
            authorized_party: text("azp")?,
            issued_at: time("iat")?.ok_or_else(not_validated)?,
            expires_at: time("exp")?.ok_or_else(not_validated)?,
            not_before: time("nbf")?,
        })
    }

    pub(super) fn check_times(
        &self,
        now: Timestamp,
        leeway: SignedDuration,
    ) -> Result<(), Refusal> {
        if now.duration_since(self.expires_at) >= leeway {
            let message = format!(
                "Token expired: current date/time {} must be before the expiration date/time {}",
                now.as_second(),
                self.expires_at.as_second()
            );
            return Err(Refusal::new(400, "ExpiredTokenException", message));
        }
        if self.issued_at.duration_since(now) > leeway {
            return Err(invalid("Token issued in the future"));
        }
        if self
            .not_before
            .is_some_and(|time| time.duration_since(now) > leeway)
        {
            return Err(invalid("Token not yet valid"));
        }
        Ok(())
    }

    /// Returns the client ID for which the token was issued, if it is one of these.
    pub(super) fn audience(&self, client_ids: &[String]) -> Result<&'a str, Refusal> {
        let client = match (self.authorized_party, &*self.audiences) {
            (Some(party), _) => party,
            (None, [audience]) => audience,
            (None, _) => return Err(not_validated()),
        };
        if !client_ids.iter().any(|known| known == client) {
            return Err(not_validated());
        }
        Ok(client)
    }
}

/// Reads seconds since 1970: an integer, also as text.
fn timestamp(value: &Value) -> Result<Timestamp, Refusal> {
    let seconds = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    seconds
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| invalid("Invalid timestamp in token claims."))
}
