//! The admin port: metrics, health, readiness and, if enabled, debug pages. Pods cannot reach it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use tokio::net::TcpListener;

use crate::drain::Drain;
use crate::metrics::{Format, Metrics};
use crate::readiness::Readiness;
use crate::serve::{Limits, serve};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type DebugPage = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// The service of the admin port.
pub struct Admin {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    debug: BTreeMap<&'static str, DebugPage>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages: Vec<_> = self.debug.keys().collect();
        f.debug_struct("Admin")
            .field("debug", &pages)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Serves `/metrics`, `/healthz` and `/readyz`.
    pub fn new(metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self {
            metrics,
            readiness,
            debug: BTreeMap::new(),
        }
    }

    /// Adds `/debug/{name}`. Anyone who can reach the port sees the page, so it must not contain
    /// secrets. Call this only if the operator has enabled it.
    #[must_use]
    pub fn with_debug(
        mut self,
        name: &'static str,
        page: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.debug.insert(name, Box::new(page));
        self
    }

    /// Serves requests on `listener` until the drain begins.
    pub async fn serve(self, listener: TcpListener, drain: Drain) {
        let admin = Arc::new(self);
        serve(listener, Limits::default(), drain, move |_, _| {
            let admin = Arc::clone(&admin);
            Some(service_fn(move |request| {
                std::future::ready(Ok(admin.answer(&request)))
            }))
        })
        .await;
    }

    /// Returns the response to one request.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n");
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(request),
            "/healthz" => reply(StatusCode::OK, TEXT, "ok"),
            "/readyz" => self.readyz(request),
            path => match path
                .strip_prefix("/debug/")
                .and_then(|name| self.debug.get(name))
            {
                Some(page) => reply(StatusCode::OK, JSON, format!("{:#}\n", page())),
                None => reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
            },
        }
    }

    fn metrics<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        // Repeated headers form one list.
        let accept: Vec<_> = request
            .headers()
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let format = Format::accepted(Some(&accept.join(",")));
        match self.metrics.encode_as(format) {
            Ok(text) => reply(StatusCode::OK, format.content_type(), text),
            Err(_) => reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                "cannot encode metrics\n",
            ),
        }
    }

    fn readyz<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let report = self.readiness.report();
        let status = if report.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        if wants_json(request.headers())
            && let Ok(json) = serde_json::to_string_pretty(&report)
        {
            return reply(status, JSON, json + "\n");
        }
        let query = request.uri().query().unwrap_or_default();
        let verbose = query
            .split('&')
            .any(|pair| pair.split('=').next() == Some("verbose"));
        reply(status, TEXT, report.to_text(verbose))
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains(JSON))
}

fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    fn admin() -> (Admin, Readiness) {
        let readiness = Readiness::new();
        (
            Admin::new(Arc::new(Metrics::new()), readiness.clone()),
            readiness,
        )
    }

    fn get(admin: &Admin, path: &str) -> (StatusCode, String, String) {
        ask(admin, Request::get(path))
    }

    fn ask(admin: &Admin, request: http::request::Builder) -> (StatusCode, String, String) {
        let response = admin.answer(&request.body(()).unwrap());
        let kind = response.headers()[CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let (parts, body) = response.into_parts();
        let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        (
            parts.status,
            kind,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[test]
    fn alive_is_not_ready() {
        let (admin, readiness) = admin();
        let pods = readiness.block("pods not loaded");
        assert_eq!(
            get(&admin, "/healthz"),
            (StatusCode::OK, TEXT.into(), "ok".into())
        );
        let (status, _, body) = get(&admin, "/readyz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("pods not loaded"), "{body}");
        drop(pods);
        assert_eq!(get(&admin, "/readyz").0, StatusCode::OK);
    }

    #[test]
    fn readyz_has_a_verbose_mode() {
        let (admin, readiness) = admin();
        readiness.condition("watch").ok();
        assert!(!get(&admin, "/readyz").2.contains("watch"));
        assert!(get(&admin, "/readyz?verbose").2.contains("[+] watch"));
        assert!(get(&admin, "/readyz?a=b&verbose=1").2.contains("[+] watch"));
        let (status, kind, body) = ask(&admin, Request::get("/readyz").header(ACCEPT, JSON));
        assert_eq!((status, kind.as_str()), (StatusCode::OK, JSON));
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["ok"][0], "watch");
    }

    #[test]
    fn metrics_use_the_requested_format() {
        let (admin, _) = admin();
        for (accept, kind, end) in [
            ("*/*", "application/openmetrics-text", "# EOF\n"),
            (
                "text/plain;version=0.0.4",
                "text/plain; version=0.0.4",
                "\n",
            ),
        ] {
            let request = Request::get("/metrics").header(ACCEPT, accept);
            let (status, found, body) = ask(&admin, request);
            assert_eq!(status, StatusCode::OK);
            assert!(found.starts_with(kind), "{found}");
            assert!(body.contains("rolegate_build_info{version="), "{body}");
            assert!(body.ends_with(end), "{body}");
            assert_eq!(body.contains("# EOF"), end == "# EOF\n", "{body}");
        }
        let (_, kind, _) = get(&admin, "/metrics");
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    }

    #[test]
    fn debug_pages_exist_only_where_they_were_added() {
        let (admin, _) = admin();
        assert_eq!(get(&admin, "/debug/store").0, StatusCode::NOT_FOUND);
        let admin = admin.with_debug("store", || serde_json::json!({"pods": 3}));
        let (status, kind, body) = get(&admin, "/debug/store");
        assert_eq!((status, kind.as_str()), (StatusCode::OK, JSON));
        assert!(body.contains("\"pods\": 3"), "{body}");
        assert_eq!(get(&admin, "/debug/other").0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn nothing_else_is_answered() {
        let (admin, _) = admin();
        for path in [
            "/",
            "/metrics/",
            "/debug",
            "/debug/",
            "//metrics",
            "/healthz/x",
        ] {
            assert_eq!(get(&admin, path).0, StatusCode::NOT_FOUND, "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"] {
            let (status, ..) = ask(&admin, Request::builder().method(method).uri("/healthz"));
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        }
        assert_eq!(ask(&admin, Request::head("/healthz")).0, StatusCode::OK);
    }

    #[tokio::test]
    async fn serves_over_a_socket() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = crate::serve::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let served = tokio::spawn(admin().0.serve(listener, drain.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "HEAD has no body: {answer}");
        drain.drain(std::time::Duration::from_secs(10)).await;
        served.await.unwrap();
    }
}
