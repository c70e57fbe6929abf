//! How long the certificates of this process still last.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::store::CertificateStore;

/// `certificate_left_seconds` by `certificate`: less than nothing for one that has ended, nothing
/// at all for one that there is not.
#[derive(Debug)]
pub struct CertificateAges(Vec<Arc<CertificateStore>>);

impl CertificateAges {
    /// Shows these, each under its own name.
    pub fn register(registry: &mut Registry, stores: impl Into<Vec<Arc<CertificateStore>>>) {
        registry.register_collector(Box::new(Self(stores.into())));
    }
}

impl Collector for CertificateAges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "certificate_left",
            "Time until the certificate that is served ends",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for store in &self.0 {
            if let Some(left) = store.left() {
                let labels = [("certificate", store.name())];
                ConstGauge::new(left.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
