//! The expiration of this process's certificates: those that it serves, and those in files.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::files::{TlsFiles, bounded};
use super::pair;
use super::store::CertificateStore;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// A certificate that ends.
pub trait Lasting: fmt::Debug + Send + Sync {
    /// Its name in metrics.
    fn name(&self) -> &'static str;

    /// Its expiration; `None` while there is no certificate.
    fn expires_at(&self) -> Option<Timestamp>;
}

impl Lasting for CertificateStore {
    fn name(&self) -> &'static str {
        self.name()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at()
    }
}

/// What of a file ends.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Its first certificate: the leaf of a chain.
    Leaf,
    /// The last of its certificates to end: of authorities an old one may still be among them.
    Authorities,
}

/// Certificates in a file that others read when they need it.
#[derive(Debug)]
pub struct CertificateFile {
    name: &'static str,
    path: PathBuf,
    part: Part,
    end: Mutex<Option<Timestamp>>,
}

impl CertificateFile {
    /// The certificate of a pair.
    pub fn of_pair(name: &'static str, files: &TlsFiles) -> Self {
        Self::new(name, files.certificate.clone(), Part::Leaf)
    }

    /// The authorities of a file, of which one that lasts is enough.
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

    /// Looks at the file now and then. Never returns.
    pub async fn follow(&self) {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks at the file. Whoever reads it to use it says what is wrong with it.
    pub async fn look(&self) {
        let pem = bounded(&self.path).await.unwrap_or_default();
        let mut ends = pair::ends(&pem);
        let end = match self.part {
            Part::Leaf => ends.next(),
            Part::Authorities => ends.max(),
        };
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

impl Lasting for CertificateFile {
    fn name(&self) -> &'static str {
        self.name
    }

    fn expires_at(&self) -> Option<Timestamp> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `certificate_expiration_timestamp_seconds` by `certificate`, for those that there are.
#[derive(Debug)]
pub struct CertificateAges(Vec<Arc<dyn Lasting>>);

impl CertificateAges {
    /// Shows these, each under its own name.
    pub fn register(registry: &mut Registry, certificates: Vec<Arc<dyn Lasting>>) {
        registry.register_collector(Box::new(Self(certificates)));
    }
}

impl Collector for CertificateAges {
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
