//! Metrics under kube2iam's names, for existing dashboards and alerts.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_runtime::histogram::AtomicHistogram;

use super::labels::{Handler, Outcome};

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
            "Duration of pods' requests, under kube2iam's name",
            metrics.requests.clone(),
        );
        registry.register(
            "kube2iam_iam_cache_hits",
            "Credentials served, under kube2iam's name",
            metrics.hits.clone(),
        );
        registry.register(
            "kube2iam_healthcheck_status",
            "1 if the health page was healthy when last requested, 0 otherwise",
            metrics.healthy.clone(),
        );
        let info = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        info.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        registry.register("kube2iam_info", "Version of the agent, always 1", info);
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
        // Clients choose methods, so unknown ones are not labels.
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

#[cfg(test)]
mod tests {
    use rolegate_runtime::test_util::Exposition;

    use super::*;

    #[test]
    fn requests_are_counted_under_the_names_of_kube2iam() {
        let mut registry = Registry::default();
        let metrics = Kube2iamRequests::register(&mut registry);
        let ok = (Outcome::Ok, StatusCode::OK);
        let bad = (Outcome::BadRequest, StatusCode::BAD_REQUEST);
        for (handler, (outcome, status), method) in [
            (Handler::RoleName, ok, Method::GET),
            (Handler::Credentials, ok, Method::HEAD),
            (Handler::Credentials, bad, Method::GET),
            (Handler::Health, ok, Method::GET),
            (Handler::Forward, ok, Method::PUT),
            (Handler::Other, bad, Method::POST),
        ] {
            let took = Duration::from_millis(2);
            metrics.request(handler, outcome, &method, status, took);
        }
        assert_eq!(metrics.hits.get(), 1);
        assert_eq!(metrics.healthy.get(), 1);
        let took = Duration::from_millis(2);
        let failed = StatusCode::INTERNAL_SERVER_ERROR;
        metrics.request(
            Handler::Health,
            Outcome::Upstream,
            &Method::GET,
            failed,
            took,
        );
        assert_eq!(metrics.healthy.get(), 0);
        let series = [
            r#"code="200",handler="securityCredentialsHandler",method="GET""#,
            r#"code="200",handler="roleHandler",method="HEAD""#,
            r#"code="400",handler="roleHandler",method="GET""#,
            r#"code="200",handler="healthHandler",method="GET""#,
            r#"code="500",handler="healthHandler",method="GET""#,
            r#"code="200",handler="reverseProxyHandler",method="PUT""#,
            r#"code="400",handler="reverseProxyHandler",method="other""#,
        ];
        Exposition::encode(&registry).assert_lines(
            series.map(|labels| {
                format!("kube2iam_http_request_duration_seconds_count{{{labels}}} 1")
            }),
        );
    }
}
