//! `uri.parse` and `uri.is_valid`: references as parsed by Go's `net/url`.

use regorus::Value;
use regorus::value::Object;

use super::text;

/// The parts of a reference that OPA returns.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uri {
    scheme: String,
    hostname: String,
    port: String,
    path: String,
    raw_path: String,
    raw_query: String,
    fragment: String,
}

/// A part of a URI. The allowed characters depend on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Zone,
    Other,
}

/// Decodes escapes; `None` if an escape is invalid, or the result is not text.
fn unescaped(text: &str, place: Place) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let byte = u8::try_from(digit()? * 16 + digit()?).ok()?;
                // In hosts, only non-ASCII characters may be escaped.
                let allowed = match place {
                    Place::Host => !byte.is_ascii() || byte == b'%',
                    Place::Zone => {
                        matches!(byte, b'%' | b' ') || !byte.is_ascii() || !is_escaped_in_host(byte)
                    }
                    Place::Other => true,
                };
                if place == Place::Host && byte == b'%' {
                    return None;
                }
                out.push(Some(byte).filter(|_| allowed)?);
            }
            byte => {
                let strange = byte.is_ascii() && is_escaped_in_host(byte);
                if place != Place::Other && strange {
                    return None;
                }
                out.push(byte);
            }
        }
    }
    String::from_utf8(out).ok()
}

fn is_escaped_in_host(byte: u8) -> bool {
    !(byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte))
}

impl Uri {
    fn parse(text: &str) -> Option<Self> {
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return None;
        }
        let mut uri = Self {
            fragment: unescaped(fragment, Place::Other)?,
            ..Self::default()
        };
        if text == "*" {
            uri.path = "*".into();
            uri.raw_path = "*".into();
            return Some(uri);
        }
        let (scheme, rest) = scheme(text)?;
        uri.scheme = scheme.to_ascii_lowercase();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        uri.raw_query = query.to_owned();
        let mut rest = rest;
        if !rest.starts_with('/') {
            if !uri.scheme.is_empty() {
                // An opaque URI has no path.
                return Some(uri);
            }
            let (segment, _) = rest.split_once('/').unwrap_or((rest, ""));
            if segment.contains(':') {
                return None;
            }
        }
        let has_authority = !uri.scheme.is_empty() || !rest.starts_with("///");
        if let Some(behind) = rest.strip_prefix("//").filter(|_| has_authority) {
            let end = behind.find('/').unwrap_or(behind.len());
            let (authority, path) = behind.split_at(end);
            let host = authority_host(authority)?;
            (uri.hostname, uri.port) = host_and_port(&host);
            rest = path;
        }
        uri.path = unescaped(rest, Place::Other)?;
        uri.raw_path = if rest == escaped_path(&uri.path) {
            uri.path.clone()
        } else {
            rest.to_owned()
        };
        Some(uri)
    }
}

/// Splits off the scheme. Returns `None` if nothing precedes the colon.
fn scheme(text: &str) -> Option<(&str, &str)> {
    for (at, c) in text.char_indices() {
        match c {
            c if c.is_ascii_alphabetic() => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return None,
            ':' => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => return Some(("", text)),
        }
    }
    Some(("", text))
}

/// Returns the host after an optional `@`, with its port.
fn authority_host(authority: &str) -> Option<String> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if let Some(user) = user {
        let valid =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
        if !user.bytes().all(valid) {
            return None;
        }
        unescaped(user, Place::Other)?;
    }
    let port_is_valid = |port: &str| {
        port.is_empty()
            || port
                .strip_prefix(':')
                .is_some_and(|port| port.bytes().all(|digit| digit.is_ascii_digit()))
    };
    if host.starts_with('[') {
        let end = host.rfind(']')?;
        let (address, port) = (host.get(..end)?, host.get(end..)?);
        if !port_is_valid(port.get(1..)?) {
            return None;
        }
        // A zone has its own escapes.
        if let Some(at) = address.find("%25") {
            let (address, zone) = address.split_at(at);
            let address = unescaped(address, Place::Host)?;
            let zone = unescaped(zone, Place::Zone)?;
            return Some(format!("{address}{zone}{port}"));
        }
    } else if let Some(at) = host.rfind(':') {
        let port = host.get(at..)?;
        if !port_is_valid(port) {
            return None;
        }
    }
    unescaped(host, Place::Host)
}

fn host_and_port(host: &str) -> (String, String) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => (name, port),
        _ => (host, ""),
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    (bare.to_owned(), port.to_owned())
}

/// Escapes a path as Go does.
fn escaped_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

pub(super) fn parse(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(uri) = text(arguments, 0).and_then(Uri::parse) else {
        return Ok(Value::Undefined);
    };
    let raw_path = if uri.path.is_empty() {
        ""
    } else {
        &uri.raw_path
    };
    let fields = [
        ("scheme", uri.scheme.as_str()),
        ("hostname", &uri.hostname),
        ("port", &uri.port),
        ("path", &uri.path),
        ("raw_path", raw_path),
        ("raw_query", &uri.raw_query),
        ("fragment", &uri.fragment),
    ];
    let fields = fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (Value::from(name), Value::from(value)));
    Ok(Object::from_iter(fields).into_value())
}

pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    let valid =
        text(arguments, 0).is_some_and(|text| !text.is_empty() && Uri::parse(text).is_some());
    Ok(Value::from(valid))
}
