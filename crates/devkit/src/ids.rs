//! Identifiers in the format of AWS and Kubernetes. They are random enough to be unique, but
//! worthless as secrets.

use std::hash::{DefaultHasher, Hash, Hasher};

const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn from(alphabet: &[u8], length: usize, random: &mut fastrand::Rng) -> String {
    (0..length)
        .filter_map(|_| random.choice(alphabet))
        .map(|&byte| char::from(byte))
        .collect()
}

/// Returns a temporary access key ID: `ASIA` and 16 characters.
pub(crate) fn access_key_id() -> String {
    format!("ASIA{}", from(BASE32, 16, &mut fastrand::Rng::new()))
}

/// Returns a secret access key: 40 characters.
pub(crate) fn secret_access_key() -> String {
    from(BASE64, 40, &mut fastrand::Rng::new())
}

/// Returns a session token with a realistic length.
pub(crate) fn session_token() -> String {
    format!(
        "IQoJb3JpZ2luX2Vj{}==",
        from(BASE64, 450, &mut fastrand::Rng::new())
    )
}

/// Returns a metadata token: 56 characters.
pub(crate) fn metadata_token() -> String {
    format!("{}==", from(BASE64, 54, &mut fastrand::Rng::new()))
}

/// Returns IAM's unique ID for `name`: the prefix (`AROA`, `AIDA`, …) and 17 characters,
/// deterministically.
pub(crate) fn unique_id(prefix: &str, name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!(
        "{prefix}{}",
        from(BASE32, 17, &mut fastrand::Rng::with_seed(hasher.finish()))
    )
}

/// Returns the suffix for a `generateName`.
pub(crate) fn suffix() -> String {
    from(b"bcdfghjklmnpqrstvwxz2456789", 5, &mut fastrand::Rng::new())
}

/// Returns a random UUID (version 4).
pub(crate) fn uuid() -> String {
    let random = fastrand::u128(..);
    let digits = format!(
        "{:032x}",
        (random & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62
    );
    let mut text = String::with_capacity(36);
    for (at, digit) in digits.char_indices() {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(access_key_id().len(), 20);
        assert_eq!(secret_access_key().len(), 40);
        assert!(session_token().len() > 400);
        assert_eq!(unique_id("AROA", "reader"), unique_id("AROA", "reader"));
        assert_ne!(unique_id("AROA", "reader"), unique_id("AROA", "writer"));
        assert_ne!(access_key_id(), access_key_id());
        let uuid = uuid();
        let parts: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
    }
}
