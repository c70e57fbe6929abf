//! Base64, hexadecimal and URL query encodings, as in Go.
//!
//! OPA's strings can hold any bytes, but strings here are UTF-8. Decoding to other bytes is an
//! error, since any other string would be a wrong result.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use regorus::Value;
use regorus::value::Object;

use super::bounded::{bounded_text, small};
use super::text;

/// Decodes as Go does: requires padding, and ignores line breaks and unused bits.
fn base64_bytes(text: &str, alphabet: &Alphabet) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
    let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GeneralPurpose::new(alphabet, config).decode(joined).ok()
}

/// Converts bytes to a string.
fn decoded(name: &str, bytes: Option<Vec<u8>>) -> anyhow::Result<Value> {
    match bytes.map(String::from_utf8) {
        None => Ok(Value::Undefined),
        Some(Ok(text)) => Ok(Value::from(text)),
        Some(Err(_)) => anyhow::bail!("{name}: the bytes are not valid UTF-8"),
    }
}

pub(super) fn base64_decode(arguments: &[Value]) -> anyhow::Result<Value> {
    let bytes = text(arguments, 0).and_then(|text| base64_bytes(text, &STANDARD));
    decoded("base64.decode", bytes)
}

pub(super) fn base64_is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    let bytes = text(arguments, 0).and_then(|text| base64_bytes(text, &STANDARD));
    Ok(Value::from(bytes.is_some()))
}

pub(super) fn base64url_decode(arguments: &[Value]) -> anyhow::Result<Value> {
    let bytes = text(arguments, 0).and_then(|text| {
        let padding = match text.len() % 4 {
            _ if text.ends_with('=') => "",
            2 => "==",
            3 => "=",
            _ => "",
        };
        base64_bytes(&format!("{text}{padding}"), &URL_SAFE)
    });
    decoded("base64url.decode", bytes)
}

pub(super) fn hex_decode(arguments: &[Value]) -> anyhow::Result<Value> {
    let bytes = text(arguments, 0).and_then(|text| {
        let digits: Option<Vec<u8>> = text.chars().map(nibble).collect();
        let pairs = digits.filter(|digits| digits.len() % 2 == 0)?;
        let byte = |pair: &[u8]| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble);
        Some(pairs.chunks(2).map(byte).collect())
    });
    decoded("hex.decode", bytes)
}

fn nibble(c: char) -> Option<u8> {
    u8::try_from(c.to_digit(16)?).ok()
}

/// Decodes `%41` and `+`; `None` if a `%` is not followed by two hexadecimal digits.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = nibble(char::from(bytes.next()?))?;
                let low = nibble(char::from(bytes.next()?))?;
                high << 4 | low
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(out)
}

fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

pub(super) fn query_encode(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let mut out = String::new();
    escape(text, &mut out);
    super::bounded(out)
}

pub(super) fn query_decode(arguments: &[Value]) -> anyhow::Result<Value> {
    decoded("urlquery.decode", text(arguments, 0).and_then(unescaped))
}

pub(super) fn query_encode_object(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "urlquery.encode_object";
    small(NAME, arguments)?;
    let Some(Value::Object(object)) = arguments.first() else {
        return Ok(Value::Undefined);
    };
    let mut pairs: Vec<(String, Vec<&str>)> = Vec::new();
    for (key, value) in object.iter() {
        let values = match value {
            Value::String(text) => Some(vec![&**text]),
            other => super::elements(Some(other)).and_then(|all| {
                all.into_iter()
                    .map(|one| match one {
                        Value::String(text) => Some(&**text),
                        _ => None,
                    })
                    .collect()
            }),
        };
        let Some(values) = values else {
            return Ok(Value::Undefined);
        };
        pairs.push((super::json::key(key)?, values));
    }
    pairs.sort();
    let mut out = String::new();
    for (key, values) in &pairs {
        for value in values {
            if !out.is_empty() {
                out.push('&');
            }
            escape(key, &mut out);
            out.push('=');
            escape(value, &mut out);
            bounded_text(NAME, &out)?;
        }
    }
    super::bounded(out)
}

pub(super) fn query_decode_object(arguments: &[Value]) -> anyhow::Result<Value> {
    const NAME: &str = "urlquery.decode_object";
    let Some(query) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    let mut pairs: std::collections::BTreeMap<Value, Vec<Value>> = Default::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (
            decoded(NAME, unescaped(key))?,
            decoded(NAME, unescaped(value))?,
        );
        if pair.contains(';') || key == Value::Undefined || value == Value::Undefined {
            return Ok(Value::Undefined);
        }
        pairs.entry(key).or_default().push(value);
    }
    let pairs = pairs
        .into_iter()
        .map(|(key, values)| (key, Value::from(values)));
    Ok(Object::from_iter(pairs).into_value())
}
