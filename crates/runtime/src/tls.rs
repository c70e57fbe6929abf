//! HTTPS with certificates that change while the process runs: a [`CertificateStore`] holds what is
//! served now, a source puts pairs into it (files here, a Secret elsewhere), and each new handshake
//! takes the latest. Open connections live on with the certificate they began with.
//!
//! rustls with aws-lc-rs and nothing else. HTTP/1.1 is all that is offered: the API server takes it
//! where it is not offered HTTP/2, and keeps its connections.

mod ages;
mod files;
mod mutual;
mod pair;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use ages::{CertificateAges, CertificateFile, Lasting};
pub use files::TlsFiles;
pub use mutual::{ClientAuthorities, ClientNames, ClientTls, ClientTlsError, MutualTls};
pub use pair::{MAX_PEM, PairError, check_pair};
pub use store::CertificateStore;

use crate::drain::Drain;
use crate::serve::{FIRST_REQUEST, Transport};

/// How long a handshake may take, from the accepted connection to its last message.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How a port answers TLS handshakes. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// TLS 1.2 and 1.3 with what `store` holds at each handshake; while that is nothing,
    /// handshakes fail.
    ///
    /// # Errors
    /// When the cryptography provider lacks what these versions need.
    pub fn new(store: Arc<CertificateStore>) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(store);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would go on with the certificate of its first handshake.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

impl Transport for ServerTls {
    type Stream = TlsStream<TcpStream>;

    async fn open(self, stream: TcpStream, drain: &Drain) -> Option<Self::Stream> {
        let ending = async {
            drain.begun().await;
            // Its first message may be waiting in the kernel.
            tokio::time::sleep(FIRST_REQUEST).await;
        };
        tokio::select! {
            opened = tokio::time::timeout(HANDSHAKE, self.0.accept(stream)) => match opened {
                Ok(Ok(stream)) => Some(stream),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    None
                }
                Err(_) => {
                    tracing::debug!("TLS handshake took too long");
                    None
                }
            },
            () = ending => None,
            () = drain.forced() => None,
        }
    }
}
