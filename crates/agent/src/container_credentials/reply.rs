//! Responses of the endpoint.
//!
//! Refusals are JSON with `code` and `message`: the SDKs for Go and Java read these two members, and
//! the others show the whole body. A refusal that a retry cannot change has a status of 4xx, since
//! several SDKs retry every 5xx.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use rolegate_core::session::FailureKind;
use rolegate_kube::service_account_keys::KeyLookupError;
use rolegate_service_account_token::{ClaimError, TokenError};

use crate::credentials::Refusal;
use crate::metrics::Outcome;

/// The value of `code` in a refusal. Clients may compare them, so they are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidRequest,
    InvalidToken,
    ExpiredToken,
    AccessDenied,
    ResourceNotFound,
    TooManyRequests,
    ServiceUnavailable,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "InvalidRequest",
            Self::InvalidToken => "InvalidToken",
            Self::ExpiredToken => "ExpiredToken",
            Self::AccessDenied => "AccessDenied",
            Self::ResourceNotFound => "ResourceNotFound",
            Self::TooManyRequests => "TooManyRequests",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::InvalidToken | Self::ExpiredToken => {
                StatusCode::BAD_REQUEST
            }
            Self::AccessDenied => StatusCode::FORBIDDEN,
            Self::ResourceNotFound => StatusCode::NOT_FOUND,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A response, and its outcome for metrics.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: Outcome,
    pub(super) response: Response<Full<Bytes>>,
}

impl Reply {
    fn new(outcome: Outcome, status: StatusCode, body: Bytes) -> Self {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        // Exactly this value: the SDK for Go compares it.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { outcome, response }
    }

    /// Creates a response with credentials.
    pub(super) fn ok(document: Bytes) -> Self {
        Self::new(Outcome::Ok, StatusCode::OK, document)
    }

    /// Creates a refusal with a message for the pod's owner.
    pub(super) fn refuse(outcome: Outcome, code: Code, message: impl AsRef<str>) -> Self {
        let message = message.as_ref().trim_end();
        let body = serde_json::json!({"code": code.as_str(), "message": message});
        Self::new(outcome, code.status(), body.to_string().into())
    }

    /// Replaces the status.
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        *self.response.status_mut() = status;
        self
    }

    /// Closes the connection after this response.
    pub(super) fn and_close(mut self) -> Self {
        let headers = self.response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        self
    }
}

impl From<TokenError> for Reply {
    fn from(error: TokenError) -> Self {
        let code = match &error {
            TokenError::Claim(ClaimError::Expired) => Code::ExpiredToken,
            _ => Code::InvalidToken,
        };
        Self::refuse(Outcome::BadToken, code, error.to_string())
    }
}

impl From<KeyLookupError> for Reply {
    fn from(error: KeyLookupError) -> Self {
        match error {
            KeyLookupError::Unknown => Self::refuse(
                Outcome::BadToken,
                Code::InvalidToken,
                format!("{error}: use a token that this cluster issued"),
            ),
            KeyLookupError::Unavailable => Self::refuse(
                Outcome::NotReady,
                Code::ServiceUnavailable,
                error.to_string(),
            ),
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let unavailable =
            |outcome, sentence: &str| Self::refuse(outcome, Code::ServiceUnavailable, sentence);
        match refusal {
            Refusal::NotSynced => unavailable(
                Outcome::NotReady,
                "rolegate has not loaded its rules and workloads yet",
            ),
            Refusal::Stale => unavailable(
                Outcome::NotReady,
                "rolegate has received no update from the cluster for too long",
            ),
            Refusal::NamespaceNotSynced => unavailable(
                Outcome::UnknownPod,
                "the namespace of this pod is not loaded yet",
            ),
            Refusal::UnknownPod => Self::refuse(
                Outcome::UnknownPod,
                Code::ResourceNotFound,
                "the token's pod does not exist on this node, or has finished",
            ),
            Refusal::UnknownServiceAccount => Self::refuse(
                Outcome::UnknownPod,
                Code::ResourceNotFound,
                "the token's ServiceAccount does not exist",
            ),
            Refusal::NoRole => Self::refuse(
                Outcome::NoRole,
                Code::ResourceNotFound,
                "the token's ServiceAccount has no role: annotate it with rolegate.dev/role or \
                 eks.amazonaws.com/role-arn, or associate a role in a RoleGrant",
            ),
            Refusal::Denied(body) => Self::refuse(
                Outcome::Denied,
                Code::AccessDenied,
                String::from_utf8_lossy(&body),
            ),
            Refusal::Failed(role, failure) => {
                let message = failure.owner_message(&role);
                match failure.kind {
                    FailureKind::Final => {
                        Self::refuse(Outcome::StsRefused, Code::AccessDenied, message)
                    }
                    FailureKind::Throttled | FailureKind::Temporary => {
                        unavailable(Outcome::StsUnavailable, &message)
                    }
                }
            }
            Refusal::Fetching => unavailable(
                Outcome::StsUnavailable,
                "STS has not responded yet, try again",
            ),
        }
    }
}
