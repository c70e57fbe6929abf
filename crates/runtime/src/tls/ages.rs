//! How long the certificates of this process still last: those that it serves, and those in files.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::files::{TlsFiles, bounded};
use super::pair;
use super::store::CertificateStore;
use crate::clock::Clock;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// A certificate that ends.
pub trait Lasting: fmt::Debug + Send + Sync {
    /// Its name in metrics.
    fn name(&self) -> &'static str;

    /// How long it still lasts, less than nothing if it has ended; `None` while there is none.
    fn left(&self) -> Option<SignedDuration>;
}

impl Lasting for CertificateStore {
    fn name(&self) -> &'static str {
        self.name()
    }

    fn left(&self) -> Option<SignedDuration> {
        self.left()
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
    clock: Clock,
    end: Mutex<Option<Timestamp>>,
}

impl CertificateFile {
    /// The certificate of a pair.
    pub fn of_pair(name: &'static str, files: &TlsFiles, clock: Clock) -> Self {
        Self::new(name, files.certificate.clone(), Part::Leaf, clock)
    }

    /// The authorities of a file, of which one that lasts is enough.
    pub fn of_authorities(name: &'static str, path: PathBuf, clock: Clock) -> Self {
        Self::new(name, path, Part::Authorities, clock)
    }

    fn new(name: &'static str, path: PathBuf, part: Part, clock: Clock) -> Self {
        Self {
            name,
            path,
            part,
            clock,
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

    fn left(&self) -> Option<SignedDuration> {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        Some(end?.duration_since(self.clock.now()))
    }
}

/// `certificate_left_seconds` by `certificate`: less than nothing for one that has ended, nothing
/// at all for one that there is not.
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
            "certificate_left",
            "Time until the certificate ends",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for certificate in &self.0 {
            if let Some(left) = certificate.left() {
                let labels = [("certificate", certificate.name())];
                ConstGauge::new(left.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
