//! Tests of the stand-ins from the clients' side: over plain HTTP, and with rolegate's clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot continue has failed"
)]
#![allow(clippy::too_many_lines, reason = "a table of cases is one test")]

mod imds;
mod kube_api;
mod kube_client;
mod sts;
mod sts_chain;
mod web_identity;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Any port on loopback.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Timeout of a test.
const DEADLINE: Duration = Duration::from_secs(20);

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

async fn open(request: Request<Full<Bytes>>) -> http::Response<Incoming> {
    Client::builder(TokioExecutor::new())
        .build_http()
        .request(request)
        .await
        .unwrap()
}

async fn send(request: Request<Full<Bytes>>) -> Reply {
    let (parts, body) = open(request).await.into_parts();
    let body = tokio::time::timeout(DEADLINE, body.collect())
        .await
        .expect("an answer that ends");
    let body = body.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

async fn call(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request.body(Full::from(body.to_owned())).unwrap()).await
}

async fn get(url: &str) -> Reply {
    call("GET", url, &[], "").await
}

/// Waits until `done` without a fixed delay.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !done() {
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
