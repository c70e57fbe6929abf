//! Mutual TLS 1.3 between rolegate processes. The server presents the certificate in its
//! [`CertificateStore`] and may request a client certificate. The client trusts a CA bundle that is
//! read for each connection, so that a rotated authority takes effect by itself.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client, server};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::HANDSHAKE_TIMEOUT;
use super::acceptor::Acceptor;
use super::files::{TlsFiles, bounded};
use super::pair::end_of;
use super::store::CertificateStore;
use crate::clock::Clock;

const ALPN: &[u8] = b"h2";
/// The time limit for a handshake at the server. A stalled one delays no other, and a busy server
/// should not be made to start over.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(20);

/// The clock for certificate validation.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The authorities of client certificates, which may change. Without any, no certificate is
/// requested.
#[derive(Default)]
pub struct ClientAuthorities(ArcSwapOption<Verifier>);

/// [`ArcSwapOption`] needs a sized type.
struct Verifier(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientAuthorities")
            .field(&self.0.load().is_some())
            .finish()
    }
}

impl ClientAuthorities {
    /// Requests certificates of these authorities, PEM, from the next handshake on.
    ///
    /// # Errors
    /// Returns a message if there is no valid authority. The previous ones stay in use.
    pub fn set(&self, pem: &[u8]) -> Result<(), String> {
        let roots = Arc::new(roots(pem)?);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| error.to_string())?;
        self.0.store(Some(Arc::new(Verifier(verifier))));
        Ok(())
    }
}

/// Verifies with the current authorities.
#[derive(Debug)]
struct Current {
    authorities: Arc<ClientAuthorities>,
    schemes: Vec<SignatureScheme>,
}

impl Current {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let verifier = self.authorities.0.load_full();
        verifier
            .map(|verifier| verifier.0.clone())
            .ok_or_else(|| rustls::Error::General("client certificates are not accepted".into()))
    }
}

impl ClientCertVerifier for Current {
    fn offer_client_auth(&self) -> bool {
        self.authorities.0.load().is_some()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verifier()?
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// The names in a client's verified certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientNames {
    /// The URIs among its subject alternative names.
    pub uris: Vec<String>,
    /// Its expiry. `None` if no certificate was presented. Times beyond the last `Timestamp` are
    /// capped.
    pub until: Option<Timestamp>,
}

/// The server side. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct MutualTls(Acceptor);

impl MutualTls {
    /// Creates a configuration for TLS 1.3 and HTTP/2 that uses the certificate in `store` at each
    /// handshake.
    ///
    /// # Errors
    /// Returns an error if the cryptography provider does not support it.
    pub fn new(
        store: Arc<CertificateStore>,
        authorities: Arc<ClientAuthorities>,
        clock: Clock,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Current {
            authorities,
            schemes: provider
                .signature_verification_algorithms
                .supported_schemes(),
        };
        let config = ServerConfig::builder_with_details(provider, Arc::new(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier));
        Ok(Self(Acceptor::new(config, store, ALPN)))
    }

    /// Performs the handshake. `None` if it fails or times out.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> Option<(server::TlsStream<TcpStream>, ClientNames)> {
        let stream = self.0.accept(stream, ACCEPT_TIMEOUT).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let names = certificates.and_then(<[_]>::first).and_then(|it| names(it));
        Some((stream, names.unwrap_or_default()))
    }
}

fn names(certificate: &[u8]) -> Option<ClientNames> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternatives = certificate
        .subject_alternative_name()
        .ok()?
        .map(|names| names.value.general_names.as_slice());
    let uris = alternatives.unwrap_or_default().iter().filter_map(|name| {
        let GeneralName::URI(uri) = name else {
            return None;
        };
        Some((*uri).to_owned())
    });
    Some(ClientNames {
        uris: uris.collect(),
        until: Some(end_of(&certificate)),
    })
}

/// An error that prevents a connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// A file cannot be used.
    #[error("{0}")]
    File(String),
    /// The name cannot occur in a certificate.
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[from] std::io::Error),
    /// The TLS configuration is invalid.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The handshake timed out.
    #[error("the TLS handshake timed out")]
    Slow,
}

/// The client side.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// The CA bundle, PEM. Read for each connection.
    pub ca: PathBuf,
    /// The client's key pair, if any. Read for each connection.
    pub pair: Option<TlsFiles>,
    /// The clock for certificate validation.
    pub clock: Clock,
}

impl ClientTls {
    /// Performs the handshake with the server `name`, a host name or an address.
    ///
    /// # Errors
    /// Returns [`ClientTlsError`] if there is no connection.
    pub async fn connect(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> Result<client::TlsStream<TcpStream>, ClientTlsError> {
        self.connect_within(HANDSHAKE_TIMEOUT, stream, name).await
    }

    /// Performs the handshake with this timeout.
    ///
    /// # Errors
    /// Returns [`ClientTlsError`] if there is no connection.
    pub async fn connect_within(
        &self,
        time: Duration,
        stream: TcpStream,
        name: &str,
    ) -> Result<client::TlsStream<TcpStream>, ClientTlsError> {
        let server =
            ServerName::try_from(name.to_owned()).map_err(|_| ClientTlsError::Name(name.into()))?;
        let config = Arc::new(self.config().await?);
        let handshake = TlsConnector::from(config).connect(server, stream);
        match tokio::time::timeout(time, handshake).await {
            Ok(stream) => Ok(stream?),
            Err(_) => Err(ClientTlsError::Slow),
        }
    }

    async fn config(&self) -> Result<ClientConfig, ClientTlsError> {
        let pem = bounded(&self.ca).await.map_err(ClientTlsError::File)?;
        let named = |error| ClientTlsError::File(format!("{}: {error}", self.ca.display()));
        let roots = roots(&pem).map_err(named)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_details(provider, Arc::new(self.clock.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let mut config = match &self.pair {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let (certificate, key) = files.read().await.map_err(ClientTlsError::File)?;
                let chain = CertificateDer::pem_slice_iter(&certificate)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|_| {
                        let path = files.certificate.display();
                        ClientTlsError::File(format!("{path} is not a certificate in PEM"))
                    })?;
                // The parser's error may quote the key.
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
                    let path = files.key.display();
                    ClientTlsError::File(format!("{path} is not a private key in PEM"))
                })?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = vec![ALPN.into()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "it contains a malformed certificate")?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("it contains no certificate: expected PEM with BEGIN CERTIFICATE".into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
