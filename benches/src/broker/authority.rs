//! The certificates of a run: a CA, and key pairs for brokers and nodes.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::{ClientTls, TlsFiles};
use tempfile::TempDir;

/// The DNS name in the brokers' certificates.
pub(crate) const HOST: &str = "localhost";
/// The prefix of the node's URI in client certificates.
const NODE_URI: &str = "rolegate://node/";

/// The CA of a run. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The common key of all nodes. Individual keys would only cost time here.
    node_key: KeyPair,
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(folder.path().join("ca.crt"), certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            node_key: KeyPair::generate()?,
            folder,
        })
    }

    /// Returns the path of the CA certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path().join("ca.crt")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a key pair for a broker.
    pub(crate) fn broker(&self) -> anyhow::Result<TlsFiles> {
        let mut params = CertificateParams::new(vec![HOST.to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.pair("broker", params, &KeyPair::generate()?)
    }

    /// Creates a key pair for the agent of a node.
    pub(crate) fn node(&self, node: &str) -> anyhow::Result<TlsFiles> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(format!("{NODE_URI}{node}").try_into()?)];
        self.pair(node, params, &self.node_key)
    }

    /// Returns the TLS client configuration of a node's agent.
    pub(crate) fn client(&self, node: &str) -> anyhow::Result<ClientTls> {
        Ok(ClientTls {
            ca: self.ca(),
            pair: Some(self.node(node)?),
            clock: Clock::system(),
        })
    }

    fn pair(
        &self,
        name: &str,
        params: CertificateParams,
        key: &KeyPair,
    ) -> anyhow::Result<TlsFiles> {
        let files = TlsFiles {
            certificate: self.path().join(format!("{name}.crt")),
            key: self.path().join(format!("{name}.key")),
        };
        let certificate = params.signed_by(key, &self.issuer)?;
        std::fs::write(&files.certificate, certificate.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}
