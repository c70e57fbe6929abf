//! The transport of the load generator's connections: TCP, or TLS over TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// The TLS client configuration, shared by all connections to a server.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl Tls {
    /// Trusts only the certificate in this PEM file.
    pub(crate) fn trusting(certificate: &Path, server: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            server: ServerName::try_from(server.to_owned())?,
        })
    }
}

/// A non-blocking connection.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<(ClientConnection, TcpStream)>),
}

impl Transport {
    /// Performs the TLS handshake, if any, on a socket that is still blocking.
    pub(crate) fn new(mut socket: TcpStream, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let Some(tls) = tls else {
            socket.set_nonblocking(true)?;
            return Ok(Self::Plain(socket));
        };
        let mut connection = ClientConnection::new(tls.config.clone(), tls.server.clone())?;
        while connection.is_handshaking() {
            connection
                .complete_io(&mut socket)
                .context("no TLS handshake")?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self::Tls(Box::new((connection, socket))))
    }

    /// Sends a complete message, which must fit into the socket's buffer.
    pub(crate) fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let fits = match self {
            Self::Plain(socket) => socket.write(message)? == message.len(),
            Self::Tls(both) => {
                let (connection, socket) = &mut **both;
                connection.writer().write_all(message)?;
                while connection.wants_write() && connection.write_tls(socket)? > 0 {}
                !connection.wants_write()
            }
        };
        if fits {
            Ok(())
        } else {
            bail!("a request did not fit into the socket's buffer")
        }
    }

    /// Reads available data like [`Read::read`]; [`ErrorKind::WouldBlock`] without any. Data
    /// that does not fit into `room` stays buffered.
    pub(crate) fn receive(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let (connection, socket) = match self {
            Self::Plain(socket) => return socket.read(room),
            Self::Tls(both) => &mut **both,
        };
        match connection.read_tls(socket) {
            Ok(_) => connection
                .process_new_packets()
                .map(drop)
                .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?,
            // Earlier data may still be available.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        connection.reader().read(room)
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(both) => both.1.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rcgen::generate_simple_self_signed;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    const MESSAGE: [u8; 5_000] = [7; 5_000];

    #[test]
    fn messages_go_and_come_whole_through_tls() {
        let pair = generate_simple_self_signed(["bench.test".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tls.crt");
        std::fs::write(&file, pair.cert.pem()).unwrap();
        let key = PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], PrivateKeyDer::from(key))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(connection, listener.accept().unwrap().0);
            let mut message = [0; MESSAGE.len()];
            stream.read_exact(&mut message).unwrap();
            for part in [&b"who "[..], b"asks?"] {
                stream.write_all(part).unwrap();
                stream.flush().unwrap();
            }
            message
        });
        let connect = || TcpStream::connect(address).unwrap();
        let tls = Tls::trusting(&file, "bench.test").unwrap();
        let mut transport = Transport::new(connect(), Some(&tls)).unwrap();
        transport.send(&MESSAGE).unwrap();
        let (mut answer, mut filled) = ([0; 64], 0);
        while filled < 9 {
            match transport.receive(&mut answer[filled..]) {
                Ok(count) => filled += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(&answer[..filled], b"who asks?");
        assert_eq!(server.join().unwrap(), MESSAGE);
    }
}
