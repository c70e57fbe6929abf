//! The server side of TLS, for all ports.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, WantsServerCert};
use rustls::{ConfigBuilder, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::store::CertificateStore;

/// A server's TLS configuration. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Acceptor(TlsAcceptor);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Completes a configuration: each handshake uses the certificate in `store` and offers only
    /// the application protocol `protocol`.
    pub(super) fn new(
        config: ConfigBuilder<ServerConfig, WantsServerCert>,
        store: Arc<CertificateStore>,
        protocol: &[u8],
    ) -> Self {
        let mut config = config.with_cert_resolver(store);
        config.alpn_protocols = vec![protocol.into()];
        // A resumed session would keep the certificates of its first handshake.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Performs the handshake. `None` if it fails or takes longer than `limit`.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> Option<TlsStream<TcpStream>> {
        match tokio::time::timeout(limit, self.0.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!("TLS handshake timed out");
                None
            }
        }
    }
}
