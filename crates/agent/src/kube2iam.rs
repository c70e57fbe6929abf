//! kube2iam's names for what the door does, for dashboards and alerts that know them.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_runtime::histogram::AtomicHistogram;

use crate::metrics::{Handler, Outcome};

type Labels = [(&'static str, String); 3];
type Requests = Family<Labels, AtomicHistogram, fn() -> AtomicHistogram>;

/// `kube2iam_http_request_duration_seconds`, `kube2iam_iam_cache_hits_total`,
/// `kube2iam_healthcheck_status` and `kube2iam_info`. Cache hits have no role as a label: pods
/// choose roles.
#[derive(Debug)]
pub(crate) struct Kube2iamRequests {
    requests: Requests,
    hits: Counter,
    healthy: Gauge<i64, AtomicI64>,
}

impl Kube2iamRequests {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Requests::new_with_constructor(|| {
                AtomicHistogram::new(AtomicHistogram::LATENCIES)
            }),
            hits: Counter::default(),
            healthy: Gauge::default(),
        };
        registry.register(
            "kube2iam_http_request_duration_seconds",
            "Time that requests of pods took, under kube2iam's name",
            metrics.requests.clone(),
        );
        registry.register(
            "kube2iam_iam_cache_hits",
            "Credentials served, under kube2iam's name",
            metrics.hits.clone(),
        );
        registry.register(
            "kube2iam_healthcheck_status",
            "Whether the health page was well when last asked for, 1 or 0",
            metrics.healthy.clone(),
        );
        let info = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        info.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        registry.register("kube2iam_info", "The version that runs, always 1", info);
        metrics
    }

    pub(crate) fn request(
        &self,
        handler: Handler,
        outcome: Outcome,
        method: &Method,
        status: StatusCode,
        took: Duration,
    ) {
        let name = match handler {
            Handler::RoleName => "securityCredentialsHandler",
            Handler::Credentials => "roleHandler",
            Handler::Health => "healthHandler",
            _ => "reverseProxyHandler",
        };
        // Methods are the client's to choose.
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::PUT => "PUT",
            _ => "other",
        };
        let labels = [
            ("code", status.as_u16().to_string()),
            ("handler", name.to_owned()),
            ("method", method.to_owned()),
        ];
        self.requests.get_or_create(&labels).observe(took);
        if handler == Handler::Credentials && outcome == Outcome::Ok {
            self.hits.inc();
        }
        if handler == Handler::Health {
            self.healthy.set(i64::from(outcome == Outcome::Ok));
        }
    }
}
