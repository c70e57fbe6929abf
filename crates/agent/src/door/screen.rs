//! Checks that refuse a request before anything else is examined.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderMap, ORIGIN};
use http::{Method, Request, StatusCode, Version};
use rolegate_core::metadata::{CanonicalPath, PathError};

use super::answer::Answer;
use crate::metrics::{Handler, Outcome};

/// A request that is answered by the door.
pub(super) enum Screened<'r> {
    /// One for kube2iam's health page.
    Health,
    /// One of a canonical path.
    Path(CanonicalPath<'r>),
}

/// Refuses what no client sends that means well: `peer` and `own` are the ends of its connection.
pub(super) fn screen<B>(
    request: &Request<B>,
    peer: IpAddr,
    own: IpAddr,
) -> Result<Screened<'_>, (Handler, Answer)> {
    let bad = |sentence: &'static str| {
        let answer = Answer::refuse(Outcome::BadRequest, sentence);
        (Handler::Other, answer)
    };
    let uri = request.uri();
    if uri.authority().is_some() || uri.scheme().is_some() {
        return Err(bad("write the path alone into the request line\n"));
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let is_health = target == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD);
    let headers = request.headers();
    let host = match host(headers) {
        Host::Is(host) => Some(host),
        // A browser sends one always, and so does whatever speaks HTTP/1.1.
        Host::Absent if request.version() <= Version::HTTP_10 => None,
        Host::Absent | Host::Several => {
            return Err(bad("send one Host header, the metadata address\n"));
        }
    };
    // A page in a browser that was pointed here by DNS has an origin, and a host name. Who is
    // on this host itself may ask for its health by any name.
    let local = is_health && peer.is_loopback();
    let is_for_us = local || host.is_none_or(|host| is_ours(host, own));
    if headers.contains_key(ORIGIN) || !is_for_us {
        let (handler, answer) = bad("send the metadata address as Host, and no Origin\n");
        return Err((handler, answer.with_status(StatusCode::FORBIDDEN)));
    }
    if is_health {
        return Ok(Screened::Health);
    }
    CanonicalPath::parse(target)
        .map(Screened::Path)
        .map_err(|error| {
            let answer = Answer::refuse(Outcome::BadRequest, format!("{error}\n"));
            let status = match error {
                PathError::NoVersion => StatusCode::NOT_FOUND,
                PathError::TooLong | PathError::NotCanonical => StatusCode::BAD_REQUEST,
            };
            (Handler::Other, answer.with_status(status))
        })
}

/// The host that a request names.
enum Host<'r> {
    Is(&'r [u8]),
    /// None, or an empty one.
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

/// Returns whether a host is a metadata address, or the address that the connection came to. A name
/// never is: an attacker who controls DNS could have pointed it here.
fn is_ours(host: &[u8], own: IpAddr) -> bool {
    match host {
        b"169.254.169.254" | b"169.254.169.254:80" => true,
        b"[fd00:ec2::254]" | b"[fd00:ec2::254]:80" => true,
        other => std::str::from_utf8(other)
            .ok()
            .and_then(|host| {
                let bare = host
                    .strip_prefix('[')
                    .and_then(|host| host.strip_suffix(']'));
                let socket = || host.parse().ok().map(|socket: SocketAddr| socket.ip());
                bare.unwrap_or(host).parse().ok().or_else(socket)
            })
            .is_some_and(|host: IpAddr| host == own),
    }
}
