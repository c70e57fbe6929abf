//! Validation that rejects a request before it is processed.

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN};
use http::{Method, Request, StatusCode, Version};
use rolegate_core::metadata::{CanonicalPath, PathError};

use super::reply::Reply;
use crate::host::host_address;
use crate::metrics::{Handler, Outcome};

/// A request that passed validation.
pub(super) enum ValidRequest<'r> {
    /// A request for kube2iam's health page.
    Health,
    /// A request for a canonical path.
    Path(CanonicalPath<'r>),
}

/// Rejects requests that no well-behaved client sends. `peer` and `own` are the ends of the
/// connection.
pub(super) fn validate_request<B>(
    request: &Request<B>,
    peer: IpAddr,
    own: IpAddr,
) -> Result<ValidRequest<'_>, (Handler, Reply)> {
    let bad = |sentence: &'static str| {
        let reply = Reply::refuse(Outcome::BadRequest, sentence);
        (Handler::Other, reply)
    };
    let uri = request.uri();
    if uri.authority().is_some() || uri.scheme().is_some() {
        return Err(bad("the request line must contain only the path\n"));
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let is_health = target == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD);
    let headers = request.headers();
    let host = match host(headers) {
        Host::Is(host) => Some(host),
        // Browsers and HTTP/1.1 clients always send one.
        Host::Absent if request.version() <= Version::HTTP_10 => None,
        Host::Absent | Host::Several => {
            return Err(bad(
                "send exactly one Host header with the metadata address\n",
            ));
        }
    };
    // A browser that DNS rebinding led here sends an Origin and a host name. Clients on this host
    // itself may use any name for the health page.
    let local = is_health && peer.is_loopback();
    let is_for_us = local || host.is_none_or(|host| is_ours(host, own));
    if headers.contains_key(ORIGIN) || !is_for_us {
        let (handler, reply) = bad("send the metadata address as Host, and no Origin header\n");
        return Err((handler, reply.with_status(StatusCode::FORBIDDEN)));
    }
    if is_health {
        return Ok(ValidRequest::Health);
    }
    CanonicalPath::parse(target)
        .map(ValidRequest::Path)
        .map_err(|error| {
            let reply = Reply::refuse(Outcome::BadRequest, format!("{error}\n"));
            let status = match error {
                PathError::NoVersion => StatusCode::NOT_FOUND,
                PathError::TooLong | PathError::NotCanonical => StatusCode::BAD_REQUEST,
            };
            (Handler::Other, reply.with_status(status))
        })
}

/// The host in a request.
enum Host<'r> {
    Is(&'r [u8]),
    /// No host, or an empty one.
    Absent,
    Several,
}

fn host(headers: &HeaderMap) -> Host<'_> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next().map(|host| host.as_bytes()), hosts.next()) {
        (None | Some(b""), None) => Host::Absent,
        (Some(host), None) => Host::Is(host),
        (_, Some(_)) => Host::Several,
    }
}

/// Returns whether a host is a metadata address, or the local address of the connection. A name
/// never is: an attacker who controls DNS could have pointed it here.
fn is_ours(host: &[u8], own: IpAddr) -> bool {
    match host {
        b"169.254.169.254" | b"169.254.169.254:80" => true,
        b"[fd00:ec2::254]" | b"[fd00:ec2::254]:80" => true,
        other => host_address(other).is_some_and(|(host, _)| host == own),
    }
}
