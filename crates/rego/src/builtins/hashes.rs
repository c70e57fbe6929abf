//! `crypto.*`: hashes and HMACs in hexadecimal.

use aws_lc_rs::{constant_time, digest, hmac};
use regorus::Value;

use super::text;

fn hex(bytes: &[u8]) -> Value {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| {
        DIGITS
            .get(usize::from(nibble))
            .map_or('0', |digit| char::from(*digit))
    };
    let text: String = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect();
    Value::from(text)
}

fn hash(arguments: &[Value], algorithm: &'static digest::Algorithm) -> anyhow::Result<Value> {
    Ok(text(arguments, 0).map_or(Value::Undefined, |text| {
        hex(digest::digest(algorithm, text.as_bytes()).as_ref())
    }))
}

fn sign(arguments: &[Value], algorithm: hmac::Algorithm) -> anyhow::Result<Value> {
    Ok(match (text(arguments, 0), text(arguments, 1)) {
        (Some(message), Some(key)) => {
            let key = hmac::Key::new(algorithm, key.as_bytes());
            hex(hmac::sign(&key, message.as_bytes()).as_ref())
        }
        _ => Value::Undefined,
    })
}

pub(super) fn sha1(arguments: &[Value]) -> anyhow::Result<Value> {
    hash(arguments, &digest::SHA1_FOR_LEGACY_USE_ONLY)
}

pub(super) fn sha256(arguments: &[Value]) -> anyhow::Result<Value> {
    hash(arguments, &digest::SHA256)
}

pub(super) fn hmac_sha1(arguments: &[Value]) -> anyhow::Result<Value> {
    sign(arguments, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY)
}

pub(super) fn hmac_sha256(arguments: &[Value]) -> anyhow::Result<Value> {
    sign(arguments, hmac::HMAC_SHA256)
}

pub(super) fn hmac_sha512(arguments: &[Value]) -> anyhow::Result<Value> {
    sign(arguments, hmac::HMAC_SHA512)
}

/// Compares two MACs in constant time.
pub(super) fn equal(arguments: &[Value]) -> anyhow::Result<Value> {
    Ok(match (text(arguments, 0), text(arguments, 1)) {
        (Some(one), Some(other)) => Value::from(
            constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok(),
        ),
        _ => Value::Undefined,
    })
}
