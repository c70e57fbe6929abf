//! Flags about a server certificate, shared by the commands that serve TLS.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rolegate_core::names;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_runtime::tls::TlsFiles;

use crate::flags::invalid;

const CERTIFICATE: &str = "Certificate";

/// The issuer of the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CertificateFrom {
    /// rolegate controller creates it, stores it in the Secret and renews it
    Controller,
    /// cert-manager stores it in the Secret
    CertManager,
    /// The files of --tls-cert and --tls-key
    Files,
}

/// Flags about the source of the certificate.
#[derive(Debug, Args)]
pub(crate) struct CertificateFlags {
    /// Source of the server certificate
    #[arg(long, value_name = "SOURCE", env = "ROLEGATE_CERTIFICATE", default_value = "controller", help_heading = CERTIFICATE)]
    certificate: CertificateFrom,
    /// Namespace of the Secret that holds the certificate
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = names::NAMESPACE, help_heading = CERTIFICATE)]
    pub(crate) namespace: String,
    /// Name of the Secret that holds the certificate [default: rolegate-COMMAND-tls]
    #[arg(long, value_name = "NAME", env = "ROLEGATE_TLS_SECRET", help_heading = CERTIFICATE)]
    tls_secret: Option<String>,
    /// Certificate chain (PEM), reloaded when it changes
    #[arg(long, value_name = "FILE", alias = "cert", env = "ROLEGATE_TLS_CERT", requires = "tls_key", help_heading = CERTIFICATE)]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", alias = "key", env = "ROLEGATE_TLS_KEY", requires = "tls_cert", help_heading = CERTIFICATE)]
    tls_key: Option<PathBuf>,
}

impl CertificateFlags {
    /// Returns the source of the certificate, and the namespace and name of its Secret.
    ///
    /// # Errors
    /// Returns a usage error for flags that contradict each other.
    pub(crate) fn source(
        self,
        secret: &str,
    ) -> anyhow::Result<(CertificateSource, (String, String))> {
        let source = match (self.certificate, self.tls_cert, self.tls_key) {
            (CertificateFrom::Files, Some(certificate), Some(key)) => {
                CertificateSource::Files(TlsFiles { certificate, key })
            }
            (CertificateFrom::Files, _, _) => {
                return Err(invalid(
                    "--certificate=files: requires --tls-cert and --tls-key",
                ));
            }
            (_, Some(_), _) => return Err(invalid("--tls-cert: requires --certificate=files")),
            (CertificateFrom::Controller, None, _) => CertificateSource::SelfSigned,
            (CertificateFrom::CertManager, None, _) => CertificateSource::CertManager,
        };
        let secret = self.tls_secret.unwrap_or_else(|| secret.into());
        Ok((source, (self.namespace, secret)))
    }
}
