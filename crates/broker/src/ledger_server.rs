//! Serves the ledger over HTTP on a port of its own. By default the port is on loopback, so that
//! RBAC for `pods/exec` and `pods/portforward` controls who may read it.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rolegate_authorizer::ledger::Ledger;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::serve::{self, Limits};
use tokio::net::TcpListener;

/// Path of the ledger: JSON, newest entry first. `?key=ASIA…` selects one access key.
pub const PATH: &str = "/ledger";

/// Serves requests on `listener` until the drain begins.
pub async fn serve(ledger: Ledger, listener: TcpListener, drain: Drain) {
    serve::serve(listener, Limits::default(), drain, move |_, _| {
        let ledger = ledger.clone();
        Some(service_fn(move |request| {
            let answer = answer(&ledger, &request);
            async { Ok::<_, Infallible>(answer) }
        }))
    })
    .await;
}

fn answer(ledger: &Ledger, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != PATH || request.method() != Method::GET {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let query = request.uri().query().unwrap_or_default();
    let key = query.split('&').find_map(|pair| pair.strip_prefix("key="));
    match serde_json::to_vec(&ledger.records(key)) {
        Ok(page) => *response.body_mut() = Full::new(page.into()),
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
