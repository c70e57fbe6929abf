//! Responses in the format of the real service.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use rolegate_aws::imds::{ImdsError, MetadataBody};

use crate::metrics::Outcome;

/// A body: bytes from memory, or a stream from the node's metadata service.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// The complete body, until it has been taken.
    Whole(Option<Bytes>),
    /// A streamed body. Boxed, since it is large and rare.
    Stream(Box<MetadataBody>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ImdsError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ImdsError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// A response, and its outcome for metrics.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) response: Response<ReplyBody>,
}

impl Reply {
    fn new(outcome: Outcome, status: StatusCode, body: Bytes) -> Self {
        let mut response = Response::new(ReplyBody::Whole(Some(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
        Self { outcome, response }
    }

    /// Creates a 200 response with this text or document. Documents have a text content type too,
    /// as in the real service.
    pub(crate) fn ok(body: Bytes) -> Self {
        Self::new(Outcome::Ok, StatusCode::OK, body)
    }

    /// Creates a response from the node's metadata service.
    pub(crate) fn forwarded(response: Response<MetadataBody>) -> Self {
        Self {
            outcome: Outcome::Ok,
            response: response.map(|body| ReplyBody::Stream(Box::new(body))),
        }
    }

    /// Creates a denial with a message for the pod's owner.
    pub(crate) fn refuse(outcome: Outcome, sentence: impl Into<Bytes>) -> Self {
        Self::new(outcome, status(outcome), sentence.into())
    }

    /// Closes the connection after this response.
    pub(crate) fn and_close(self) -> Self {
        self.with_header(CONNECTION, HeaderValue::from_static("close"))
    }

    /// Replaces the status.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        *self.response.status_mut() = status;
        self
    }

    /// Adds a header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.response.headers_mut().insert(name, value);
        self
    }
}

/// Returns the status of an outcome.
fn status(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Ok => StatusCode::OK,
        Outcome::NoRole | Outcome::UnknownPod => StatusCode::NOT_FOUND,
        Outcome::WrongRole | Outcome::Denied | Outcome::StsRefused | Outcome::ClosedPath => {
            StatusCode::FORBIDDEN
        }
        Outcome::StsUnavailable | Outcome::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        Outcome::BadRequest => StatusCode::BAD_REQUEST,
        Outcome::BadToken => StatusCode::UNAUTHORIZED,
        Outcome::Limited => StatusCode::TOO_MANY_REQUESTS,
        Outcome::Upstream => StatusCode::BAD_GATEWAY,
    }
}
