//! Requests of the stand-ins to HTTPS servers, each on a connection of its own.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;

/// Maximum size of a response, in bytes.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// The failure of a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No TCP connection could be opened.
    #[error("{0}")]
    Connect(io::Error),
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("{0}")]
    Handshake(io::Error),
    /// The server sent no valid response, or too long a response.
    #[error("{0}")]
    Response(String),
}

impl From<hyper::Error> for RequestError {
    fn from(error: hyper::Error) -> Self {
        Self::Response(error.to_string())
    }
}

/// Sends a request to the server `host` at `address`, and returns the response. The caller limits
/// the time.
///
/// # Errors
/// Returns an error unless a complete response arrives.
pub(crate) async fn send(
    tls: ClientConfig,
    host: &str,
    address: impl ToSocketAddrs,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, RequestError> {
    let tcp = TcpStream::connect(address)
        .await
        .map_err(RequestError::Connect)?;
    let server = ServerName::try_from(host.to_owned())
        .map_err(|error| RequestError::Response(error.to_string()))?;
    let tls = TlsConnector::from(Arc::new(tls))
        .connect(server, tcp)
        .await
        .map_err(RequestError::Handshake)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let response = async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
        let body = body.map_err(|error| RequestError::Response(error.to_string()))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    let mut response = pin!(response);
    tokio::select! {
        response = &mut response => response,
        // The server may close the connection before the end of the response is read from memory.
        _ended = connection => response.await,
    }
}

/// Returns the TLS configuration of a client that trusts the certificates of a PEM bundle.
///
/// # Errors
/// Returns an error if the bundle contains an invalid certificate.
pub(crate) fn trusting(bundle: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
