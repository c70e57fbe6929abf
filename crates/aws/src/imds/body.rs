//! The body of a forwarded response.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::{ImdsError, unreachable};

/// A streamed body that fails at a deadline.
#[derive(Debug)]
pub struct MetadataBody {
    inner: Incoming,
    /// `None` if the body is empty or arrived with the headers.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl MetadataBody {
    pub(super) fn new(inner: Incoming, limit: Duration) -> Self {
        let deadline = (!inner.is_end_stream()).then(|| Box::pin(sleep(limit)));
        Self { inner, deadline }
    }
}

impl Body for MetadataBody {
    type Data = Bytes;
    type Error = ImdsError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ImdsError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| unreachable(&error))));
        }
        match &mut self.deadline {
            Some(deadline) => deadline
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(ImdsError::TimedOut))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
