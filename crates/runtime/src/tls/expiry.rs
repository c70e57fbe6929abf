//! The expiration of this process's certificates: those that it serves, and those in files.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::files::{TlsFiles, bounded};
use super::pair;
use super::store::CertificateStore;

/// Interval at which a file is read.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// A certificate that expires.
pub trait Expires: fmt::Debug + Send + Sync {
    /// Returns the certificate's name in metrics.
    fn name(&self) -> &'static str;

    /// Returns its expiration. `None` while there is no certificate.
    fn expires_at(&self) -> Option<Timestamp>;
}

impl Expires for CertificateStore {
    fn name(&self) -> &'static str {
        self.name()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at()
    }
}

/// The certificates of a file whose expiration counts.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// The first one: the leaf of a chain.
    Leaf,
    /// The one that expires last: a CA bundle may still contain an old authority.
    Authorities,
}

/// Certificates in a file that other components read when they need it.
#[derive(Debug)]
pub struct CertificateFile {
    name: &'static str,
    path: PathBuf,
    part: Part,
    end: Mutex<Option<Timestamp>>,
}

impl CertificateFile {
    /// Tracks the certificate of a key pair.
    pub fn of_pair(name: &'static str, files: &TlsFiles) -> Self {
        Self::new(name, files.certificate.clone(), Part::Leaf)
    }

    /// Tracks a CA bundle by the authority that expires last.
    pub fn of_authorities(name: &'static str, path: PathBuf) -> Self {
        Self::new(name, path, Part::Authorities)
    }

    fn new(name: &'static str, path: PathBuf, part: Part) -> Self {
        Self {
            name,
            path,
            part,
            end: Mutex::default(),
        }
    }

    /// Reads the file periodically. Never returns.
    pub async fn follow(&self) {
        loop {
            self.update().await;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Reads the file. Errors are left to the component that uses the file.
    pub async fn update(&self) {
        let pem = bounded(&self.path).await.unwrap_or_default();
        let mut ends = pair::expirations(&pem);
        let end = match self.part {
            Part::Leaf => ends.next(),
            Part::Authorities => ends.max(),
        };
        *self.end.lock() = end;
    }
}

impl Expires for CertificateFile {
    fn name(&self) -> &'static str {
        self.name
    }

    fn expires_at(&self) -> Option<Timestamp> {
        *self.end.lock()
    }
}

/// Exports `certificate_expiration_timestamp_seconds` by `certificate`, for the existing ones.
#[derive(Debug)]
pub struct ExpiryCollector(Vec<Arc<dyn Expires>>);

impl ExpiryCollector {
    /// Registers these certificates, each under its own name.
    pub fn register(registry: &mut Registry, certificates: Vec<Arc<dyn Expires>>) {
        registry.register_collector(Box::new(Self(certificates)));
    }
}

impl Collector for ExpiryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "certificate_expiration_timestamp",
            "Expiration of the certificate, as Unix time",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for certificate in &self.0 {
            if let Some(expires_at) = certificate.expires_at() {
                let labels = [("certificate", certificate.name())];
                ConstGauge::new(expires_at.as_second()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
