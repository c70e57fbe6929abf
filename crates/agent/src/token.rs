//! Tokens of metadata version 2, without state: what a token is good for stands in the token,
//! authenticated by a key that only agents of this node hold.
//!
//! `base64url(expiry, 8 bytes · HMAC-SHA256(key, expiry · pod UID · address))`. A token is thus
//! worth nothing to another pod, also to one that gets the address later.

use std::net::IpAddr;

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use zeroize::Zeroizing;

/// Longest life that may be asked for, seconds; as in the real service.
pub const MAX_TTL_SECONDS: u32 = 21_600;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;

const EXPIRY: usize = 8;
const TAG: usize = 32;

/// There is no randomness to make a key of.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes for the key of metadata tokens")]
pub struct NoRandomness;

/// The key that makes and checks tokens. Never formatted; wiped when dropped.
pub struct TokenKey {
    bytes: Zeroizing<[u8; KEY_LENGTH]>,
    key: hmac::Key,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    /// A new key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        rand::fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The key of an agent that hands over.
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref());
        Self { bytes, key }
    }

    /// The key, for handing over.
    pub fn bytes(&self) -> &Zeroizing<[u8; KEY_LENGTH]> {
        &self.bytes
    }

    /// A token for the pod `uid` at `address`, good for `ttl_seconds`.
    pub fn issue(&self, uid: &str, address: IpAddr, ttl_seconds: u32, now: Timestamp) -> String {
        let expiry = now.as_second().saturating_add(i64::from(ttl_seconds));
        let expiry = expiry.to_be_bytes();
        let tag = self.tag(expiry, uid, address);
        let mut token = [0; EXPIRY + TAG];
        let (head, tail) = token.split_at_mut(EXPIRY);
        head.copy_from_slice(&expiry);
        tail.copy_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Whether `token` was issued to the pod `uid` at `address` and is not over. Takes the same
    /// time whatever is wrong with the tag.
    pub fn verify(&self, token: &[u8], uid: &str, address: IpAddr, now: Timestamp) -> bool {
        let mut decoded = [0; EXPIRY + TAG];
        if URL_SAFE_NO_PAD.decode_slice(token, &mut decoded) != Ok(EXPIRY + TAG) {
            return false;
        }
        let Some((expiry, tag)) = decoded.split_first_chunk::<EXPIRY>() else {
            return false;
        };
        let message = message(*expiry, uid, address);
        hmac::verify(&self.key, &message, tag).is_ok()
            && now.as_second() < i64::from_be_bytes(*expiry)
    }

    fn tag(&self, expiry: [u8; EXPIRY], uid: &str, address: IpAddr) -> hmac::Tag {
        hmac::sign(&self.key, &message(expiry, uid, address))
    }
}

fn message(expiry: [u8; EXPIRY], uid: &str, address: IpAddr) -> Vec<u8> {
    let mut message = Vec::with_capacity(64 + uid.len());
    message.extend_from_slice(&expiry);
    message.extend_from_slice(uid.as_bytes());
    // A NUL is in no UID: the parts cannot be shifted against each other.
    message.push(0);
    match address {
        IpAddr::V4(address) => message.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => message.extend_from_slice(&address.octets()),
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_pod_one_address_and_its_time() {
        let key = TokenKey::generate().unwrap();
        let address: IpAddr = [10, 0, 0, 1].into();
        let token = key.issue("uid-1", address, 60, at(0));
        let good = |token: &str, uid, address, now| key.verify(token.as_bytes(), uid, address, now);
        assert!(good(&token, "uid-1", address, at(0)));
        assert!(good(&token, "uid-1", address, at(59)));
        assert!(!good(&token, "uid-1", address, at(60)));
        assert!(!good(&token, "uid-2", address, at(0)));
        assert!(!good(&token, "uid-1", [10, 0, 0, 2].into(), at(0)));
        assert!(!good(&token, "uid-1", "fd00::1".parse().unwrap(), at(0)));
        let other = TokenKey::generate().unwrap();
        assert!(!other.verify(token.as_bytes(), "uid-1", address, at(0)));
        let heir = TokenKey::from_bytes(key.bytes().clone());
        assert!(heir.verify(token.as_bytes(), "uid-1", address, at(0)));
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let key = TokenKey::generate().unwrap();
        let address: IpAddr = [10, 0, 0, 1].into();
        let token = key.issue("uid-1", address, 60, at(0));
        for place in 0..token.len() {
            for replacement in [b'A', b'B', b'_', b'=', b' '] {
                let mut forged = token.clone().into_bytes();
                if forged[place] == replacement {
                    continue;
                }
                forged[place] = replacement;
                assert!(!key.verify(&forged, "uid-1", address, at(0)), "{place}");
            }
        }
    }

    proptest! {
        #[test]
        fn junk_is_no_token(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = TokenKey::generate().unwrap();
            prop_assert!(!key.verify(&junk, "uid-1", [10, 0, 0, 1].into(), at(0)));
        }
    }

    #[test]
    fn the_key_is_not_formatted() {
        let key = TokenKey::from_bytes(Zeroizing::new([65; KEY_LENGTH]));
        assert_eq!(format!("{key:?}"), "TokenKey(…)");
    }
}
