//! Validation that rejects a request before its token is read.

use std::net::SocketAddr;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{Method, Request, StatusCode};

use super::reply::{Code, Reply};
use crate::host::{FORWARDED_FOR, host_address};
use crate::metrics::Outcome;

/// The one path of the endpoint.
const PATH: &str = "/v1/credentials";

/// Returns the token of a request. `own` is the local address of the connection.
pub(super) fn token_of<B>(request: &Request<B>, own: SocketAddr) -> Result<&[u8], Reply> {
    let uri = request.uri();
    let is_path = uri.authority().is_none() && uri.scheme().is_none();
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if !is_path || target != PATH {
        let sentence = "this endpoint serves only /v1/credentials";
        return Err(
            Reply::refuse(Outcome::BadRequest, Code::InvalidRequest, sentence)
                .with_status(StatusCode::NOT_FOUND),
        );
    }
    if *request.method() != Method::GET {
        let sentence = "this path supports only GET";
        return Err(
            Reply::refuse(Outcome::BadRequest, Code::InvalidRequest, sentence)
                .with_status(StatusCode::METHOD_NOT_ALLOWED),
        );
    }
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none());
    let is_ours = host.is_some_and(|host| is_ours(host.as_bytes(), own));
    // A browser that DNS rebinding led here sends an Origin and a host name.
    if !is_ours || headers.contains_key(ORIGIN) || headers.contains_key(&FORWARDED_FOR) {
        let sentence = "Access Denied. Called agent through invalid address: send this endpoint's \
                        address as Host, without a proxy (NO_PROXY=169.254.170.23,fd00:ec2::23), \
                        and no Origin header";
        return Err(
            Reply::refuse(Outcome::BadRequest, Code::AccessDenied, sentence)
                .with_status(StatusCode::FORBIDDEN),
        );
    }
    let mut tokens = headers.get_all(AUTHORIZATION).iter();
    match (tokens.next().map(|token| token.as_bytes()), tokens.next()) {
        (Some(token), None) if !token.is_empty() => Ok(token),
        _ => Err(Reply::refuse(
            Outcome::BadToken,
            Code::InvalidToken,
            "Service account token cannot be empty: send the content of \
             AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE in one Authorization header",
        )),
    }
}

/// Returns whether a host is the local address of the connection, with its port or without. A name
/// never is: an attacker who controls DNS could have pointed it here.
fn is_ours(host: &[u8], own: SocketAddr) -> bool {
    host_address(host).is_some_and(|(address, port)| {
        address.to_canonical() == own.ip().to_canonical()
            && port.is_none_or(|port| port == own.port())
    })
}
