//! AWS Signature Version 4, verified by signing the request again.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SessionTokenMode, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use http::header::HOST;
use http::request::Parts;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Refusal;
use super::access_key::AccessKey;

/// Maximum clock skew of the caller.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(15);
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// The content of an `Authorization` header.
#[derive(Debug)]
pub(super) struct Authorization<'a> {
    pub(super) access_key_id: &'a str,
    date: &'a str,
    pub(super) region: &'a str,
    service: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    pub(super) fn parse(header: &'a str) -> Result<Self, Refusal> {
        let incomplete = |what: &str| {
            let message = format!("Authorization header requires {what}.");
            Refusal::new(400, "IncompleteSignature", message)
        };
        let fields = header
            .strip_prefix("AWS4-HMAC-SHA256 ")
            .ok_or_else(|| incomplete("the algorithm AWS4-HMAC-SHA256"))?;
        let field = |name: &str| {
            fields
                .split(',')
                .filter_map(|field| field.trim().split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
                .ok_or_else(|| incomplete(&format!("'{name}' parameter")))
        };
        let credential = field("Credential")?;
        let [access_key_id, date, region, service, "aws4_request"] =
            credential.split('/').collect::<Vec<_>>()[..]
        else {
            return Err(incomplete(
                "a Credential of key/date/region/service/aws4_request",
            ));
        };
        Ok(Self {
            access_key_id,
            date,
            region,
            service,
            signed_headers: field("SignedHeaders")?.split(';').collect(),
            signature: field("Signature")?,
        })
    }

    /// Verifies that `key` signed this request recently.
    pub(super) fn verify(
        &self,
        key: &AccessKey,
        parts: &Parts,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mismatch = |message: String| Refusal::new(403, "SignatureDoesNotMatch", message);
        if self.service != "sts" {
            return Err(mismatch(
                "Credential should be scoped to correct service: 'sts'.".into(),
            ));
        }
        let text = parts
            .headers
            .get("x-amz-date")
            .and_then(|value| value.to_str().ok());
        let time = text.and_then(|text| DateTime::strptime(TIME, text).ok());
        let time = time.and_then(|time| time.to_zoned(TimeZone::UTC).ok());
        let (Some(text), Some(time)) = (text, time) else {
            let message = "Request must contain either a valid (non-predefined) 'X-Amz-Date' \
                           header or a 'Date' header.";
            return Err(Refusal::new(400, "IncompleteSignature", message));
        };
        let time = time.timestamp();
        if !text.starts_with(self.date) {
            return Err(mismatch(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{}' != '{text}'",
                self.date
            )));
        }
        if now.duration_since(time) > MAX_SKEW {
            return Err(mismatch(format!(
                "Signature expired: {text} is too long ago (15 min.)"
            )));
        }
        if time.duration_since(now) > MAX_SKEW {
            return Err(mismatch(format!(
                "Signature not yet current: {text} is in the future"
            )));
        }
        if self
            .expected_signature(key, parts, body, time.into())
            .as_deref()
            == Some(self.signature)
        {
            return Ok(());
        }
        let message = "The request signature we calculated does not match the signature you \
                       provided. Check your AWS Secret Access Key and signing method. Consult \
                       the service documentation for details.";
        Err(mismatch(message.into()))
    }

    /// Returns the expected signature, or `None` for a request that cannot be signed.
    fn expected_signature(
        &self,
        key: &AccessKey,
        parts: &Parts,
        body: &[u8],
        time: SystemTime,
    ) -> Option<String> {
        let identity = Credentials::new(
            self.access_key_id,
            &key.secret_access_key,
            key.session_token.clone(),
            None,
            "devkit",
        )
        .into();
        let mut settings = SigningSettings::default();
        // The caller chose which headers are signed.
        settings.excluded_headers = None;
        if !self.signed_headers.contains(&"x-amz-security-token") {
            settings.session_token_mode = SessionTokenMode::Exclude;
        }
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(time)
            .settings(settings)
            .build()
            .ok()?
            .into();
        let headers: Option<Vec<_>> = self
            .signed_headers
            .iter()
            .flat_map(|name| {
                parts
                    .headers
                    .get_all(*name)
                    .iter()
                    .map(move |value| (*name, value))
            })
            .map(|(name, value)| Some((name, value.to_str().ok()?)))
            .collect();
        let host = parts.headers.get(HOST)?.to_str().ok()?;
        let uri = format!("http://{host}{}", parts.uri.path_and_query()?);
        let request = SignableRequest::new(
            parts.method.as_str(),
            uri,
            headers?.into_iter(),
            SignableBody::Bytes(body),
        )
        .ok()?;
        Some(sign(request, &parameters).ok()?.signature().to_owned())
    }
}
