//! Headers that show by which address a client reached an endpoint.

use std::net::{IpAddr, SocketAddr};

use http::header::HeaderName;

/// The header by which proxies name their clients.
pub(crate) static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Parses the value of a `Host` header that is an address: the address, and the port if there is
/// one. Returns `None` for a name.
pub(crate) fn host_address(host: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let host = std::str::from_utf8(host).ok()?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse() {
        return Some((address, None));
    }
    let socket: SocketAddr = host.parse().ok()?;
    Some((socket.ip(), Some(socket.port())))
}
