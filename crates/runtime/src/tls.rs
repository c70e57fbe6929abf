//! HTTPS with certificates that change while the process runs. A [`CertificateStore`] holds the
//! current certificate, a source updates it (files here, a Secret elsewhere), and each new
//! handshake uses the latest. Open connections keep the certificate that they began with.
//!
//! TLS is rustls with aws-lc-rs. Only HTTP/1.1 is offered: the API server falls back to it and
//! keeps its connections.

mod acceptor;
mod expiry;
mod files;
mod mtls;
mod pair;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

pub use expiry::{CertificateFile, Expires, ExpiryCollector};
pub use files::TlsFiles;
pub use mtls::{ClientAuthorities, ClientNames, ClientTls, ClientTlsError, MutualTls};
pub use pair::{MAX_PEM_BYTES, PairError, check_pair, expirations};
pub use store::CertificateStore;

use crate::drain::Drain;
use crate::transport::{FIRST_REQUEST_TIMEOUT, Transport};
use acceptor::Acceptor;

/// Time limit for a handshake, from the accepted connection to its last message.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The TLS configuration of a port. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ServerTls(Acceptor);

impl ServerTls {
    /// Creates a configuration for TLS 1.2 and 1.3 that uses the certificate in `store` at each
    /// handshake. Handshakes fail while `store` is empty.
    ///
    /// # Errors
    /// Returns an error if the cryptography provider does not support these versions.
    pub fn new(store: Arc<CertificateStore>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        Ok(Self(Acceptor::new(config, store, b"http/1.1")))
    }
}

impl Transport for ServerTls {
    type Stream = TlsStream<TcpStream>;

    async fn open(self, stream: TcpStream, drain: &Drain) -> Option<Self::Stream> {
        let ending = async {
            drain.begun().await;
            // The client's first message may be waiting in the kernel.
            tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        };
        tokio::select! {
            opened = self.0.accept(stream, HANDSHAKE_TIMEOUT) => opened,
            () = ending => None,
            () = drain.forced() => None,
        }
    }
}
