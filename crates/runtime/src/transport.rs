//! The layer between TCP and HTTP: none, or TLS.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::drain::Drain;

/// Time that a new connection has to send its first request during shutdown.
pub(crate) const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// The layer between TCP and HTTP.
pub(crate) trait Transport: Clone + Send + 'static {
    /// The stream that carries HTTP.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Opens the stream. `None` if that fails, times out or the process shuts down.
    fn open(
        self,
        stream: TcpStream,
        drain: &Drain,
    ) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// Plain TCP.
#[derive(Clone)]
pub(crate) struct Plain;

impl Transport for Plain {
    type Stream = TcpStream;

    async fn open(self, stream: TcpStream, _: &Drain) -> Option<TcpStream> {
        Some(stream)
    }
}
