//! Stateless IMDSv2 tokens: a token contains its scope, authenticated by a key that only agents of
//! this node have.
//!
//! `base64url(expiry, 8 bytes · HMAC-SHA256(key, expiry · pod UID · address))`. So a token is
//! useless to another pod, even one that gets the address later.
//!
//! Clients cache a token until its promised expiry. So a key is rotated once a day, and the
//! previous one stays valid until the last of its tokens has expired. Both outlive the process
//! ([`store`]).

pub mod store;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard};
use zeroize::Zeroizing;

/// Maximum TTL of a token, in seconds, as in the real service.
pub const MAX_TTL_SECONDS: u32 = 21_600;

/// Size of a key, in bytes.
pub const KEY_LENGTH: usize = 32;

/// Size of a [`KeyRing`], in bytes: two keys, each with a time.
pub const RING_LENGTH: usize = 2 * (KEY_LENGTH + TIME);

/// The time for which a key signs new tokens, in seconds. It exceeds [`MAX_TTL_SECONDS`], so that
/// at most one earlier key is still valid.
const KEY_LIFE: i64 = 24 * 3600;
/// The time that the clock may go back before a key from the future is rotated, in seconds.
const CLOCK_STEP: i64 = 3600;

const TIME: usize = 8;
const EXPIRY: usize = 8;
const TAG: usize = 32;

/// The system has no random bytes for a key.
#[derive(Debug, thiserror::Error)]
#[error("cannot get random bytes for the key of metadata tokens")]
pub struct NoRandomness;

/// A key that issues and checks tokens. It is never formatted, and wiped on drop.
#[derive(Clone)]
struct Key {
    bytes: Zeroizing<[u8; KEY_LENGTH]>,
    hmac: hmac::Key,
}

impl Key {
    fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        rand::fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Self::from_bytes(bytes))
    }

    fn from_bytes(bytes: Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref());
        Self { bytes, hmac }
    }
}

/// The key that issues tokens, and the previous one while its tokens may still be valid. It is
/// never formatted, and wiped on drop.
#[derive(Clone)]
pub struct KeyRing {
    current: Key,
    /// The creation time of `current`, in seconds.
    made: i64,
    previous: Option<Previous>,
}

#[derive(Clone)]
struct Previous {
    key: Key,
    /// The expiry of the last of its tokens, in seconds.
    until: i64,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRing(…)")
    }
}

impl KeyRing {
    /// Creates a ring with a new key.
    ///
    /// # Errors
    /// Returns [`NoRandomness`].
    pub fn generate(now: Timestamp) -> Result<Self, NoRandomness> {
        Ok(Self {
            current: Key::generate()?,
            made: now.as_second(),
            previous: None,
        })
    }

    /// Creates the ring of an agent that hands over only its current key.
    pub fn of_key(bytes: Zeroizing<[u8; KEY_LENGTH]>, now: Timestamp) -> Self {
        Self {
            current: Key::from_bytes(bytes),
            made: now.as_second(),
            previous: None,
        }
    }

    /// Parses a ring that [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; RING_LENGTH]) -> Option<Self> {
        let (current, rest) = bytes.split_first_chunk::<KEY_LENGTH>()?;
        let (made, rest) = rest.split_first_chunk::<TIME>()?;
        let (previous, rest) = rest.split_first_chunk::<KEY_LENGTH>()?;
        let (until, _) = rest.split_first_chunk::<TIME>()?;
        let until = i64::from_be_bytes(*until);
        Some(Self {
            current: Key::from_bytes(Zeroizing::new(*current)),
            made: i64::from_be_bytes(*made),
            previous: (until != 0).then(|| Previous {
                key: Key::from_bytes(Zeroizing::new(*previous)),
                until,
            }),
        })
    }

    /// Serializes the current key, its creation time, the previous key and its expiry. The latter
    /// two are zero if there is no previous key.
    pub fn to_bytes(&self) -> Zeroizing<[u8; RING_LENGTH]> {
        let mut bytes = Zeroizing::new([0; RING_LENGTH]);
        let made = self.made.to_be_bytes();
        let previous = self.previous.as_ref();
        let until = previous.map_or(0, |previous| previous.until).to_be_bytes();
        let none = [0; KEY_LENGTH];
        let previous = previous.map_or(&none, |previous| &previous.key.bytes);
        let parts: [&[u8]; 4] = [self.current.bytes.as_ref(), &made, previous, &until];
        for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// Returns the next ring if the current key is due for rotation.
    ///
    /// # Errors
    /// Returns [`NoRandomness`].
    pub fn rotated(&self, now: Timestamp) -> Result<Option<Self>, NoRandomness> {
        let now = now.as_second();
        if (self.made.saturating_sub(CLOCK_STEP)..self.made.saturating_add(KEY_LIFE)).contains(&now)
        {
            return Ok(None);
        }
        Ok(Some(Self {
            current: Key::generate()?,
            made: now,
            previous: Some(Previous {
                key: self.current.clone(),
                // A token's expiry is rounded up to the second.
                until: now.saturating_add(i64::from(MAX_TTL_SECONDS) + 1),
            }),
        }))
    }
}

/// Issues and checks tokens.
#[derive(Debug)]
pub struct TokenKeys {
    ring: ArcSwap<KeyRing>,
    /// Locked while the ring is rotated or handed over, so that the next agent has the newest ring.
    rotator: Mutex<Rotator>,
}

/// The agent that rotates the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotator {
    This,
    /// The next agent, which has the keys too.
    Next,
}

/// A handover of the keys in progress. They are not rotated until it ends. This agent continues to
/// rotate them if the handover ends without [`confirm`](Self::confirm).
#[derive(Debug)]
pub struct HandOver<'a> {
    ring: Arc<KeyRing>,
    rotator: MutexGuard<'a, Rotator>,
}

impl HandOver<'_> {
    /// Returns the keys to hand over.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Confirms that the other agent has the keys and rotates them from now on.
    pub fn confirm(mut self) {
        *self.rotator = Rotator::Next;
    }
}

impl TokenKeys {
    /// Creates the tokens of this ring.
    pub fn new(ring: KeyRing) -> Self {
        Self {
            ring: ArcSwap::from_pointee(ring),
            rotator: Mutex::new(Rotator::This),
        }
    }

    /// Starts a handover of the keys, after a rotation in progress has finished.
    pub async fn hand_over(&self) -> HandOver<'_> {
        let rotator = self.rotator.lock().await;
        HandOver {
            ring: self.ring.load_full(),
            rotator,
        }
    }

    /// Rotates the key if it is due, after `store` has stored the new ring. Returns whether it did.
    /// Waits for a handover in progress.
    ///
    /// # Errors
    /// Returns [`NoRandomness`].
    pub async fn rotate(
        &self,
        now: Timestamp,
        store: impl FnOnce(&KeyRing),
    ) -> Result<bool, NoRandomness> {
        let rotator = self.rotator.lock().await;
        if *rotator == Rotator::Next {
            return Ok(false);
        }
        let Some(ring) = self.ring.load().rotated(now)? else {
            return Ok(false);
        };
        // Stored before it issues any token, or a crash would leave tokens that no agent
        // recognizes.
        store(&ring);
        self.ring.store(Arc::new(ring));
        Ok(true)
    }

    /// Issues a token for the pod `uid` at `address` that is valid for at least `ttl_seconds`.
    pub fn issue(&self, uid: &str, address: IpAddr, ttl_seconds: u32, now: Timestamp) -> String {
        let begun = now.as_second() + i64::from(now.subsec_nanosecond() > 0);
        let expiry = begun.saturating_add(i64::from(ttl_seconds)).to_be_bytes();
        let message = message(expiry, uid, address);
        let tag = hmac::sign(&self.ring.load().current.hmac, &message);
        let mut token = [0; EXPIRY + TAG];
        let (head, tail) = token.split_at_mut(EXPIRY);
        head.copy_from_slice(&expiry);
        tail.copy_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Returns whether `token` was issued to the pod `uid` at `address` and has not expired. The
    /// comparison takes constant time for any tag.
    pub fn verify(&self, token: &[u8], uid: &str, address: IpAddr, now: Timestamp) -> bool {
        let Some((expiry, tag)) = decode(token) else {
            return false;
        };
        let now = now.as_second();
        if now >= i64::from_be_bytes(expiry) {
            return false;
        }
        let message = message(expiry, uid, address);
        let ring = self.ring.load();
        hmac::verify(&ring.current.hmac, &message, &tag).is_ok()
            || ring.previous.as_ref().is_some_and(|previous| {
                now < previous.until && hmac::verify(&previous.key.hmac, &message, &tag).is_ok()
            })
    }

    /// Returns whether `token` has the format of a token, for any pod and any key.
    pub fn is_shaped(token: &[u8]) -> bool {
        decode(token).is_some()
    }
}

fn decode(token: &[u8]) -> Option<([u8; EXPIRY], [u8; TAG])> {
    let mut decoded = [0; EXPIRY + TAG];
    if URL_SAFE_NO_PAD.decode_slice(token, &mut decoded) != Ok(EXPIRY + TAG) {
        return None;
    }
    let (expiry, tag) = decoded.split_first_chunk::<EXPIRY>()?;
    Some((*expiry, *tag.first_chunk::<TAG>()?))
}

fn message(expiry: [u8; EXPIRY], uid: &str, address: IpAddr) -> Vec<u8> {
    let mut message = Vec::with_capacity(64 + uid.len());
    message.extend_from_slice(&expiry);
    message.extend_from_slice(uid.as_bytes());
    // No UID contains a NUL, so the parts are unambiguous.
    message.push(0);
    match address {
        IpAddr::V4(address) => message.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => message.extend_from_slice(&address.octets()),
    }
    message
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn keys() -> TokenKeys {
        TokenKeys::new(KeyRing::generate(at(0)).unwrap())
    }

    /// Returns the keys of another process that received them as bytes.
    fn heir(keys: &TokenKeys) -> TokenKeys {
        TokenKeys::new(KeyRing::from_bytes(&keys.ring.load().to_bytes()).unwrap())
    }

    /// Rotates the keys while no handover is in progress.
    fn rotate(keys: &TokenKeys, second: i64, store: impl FnOnce(&KeyRing)) -> bool {
        let rotated = keys.rotate(at(second), store).now_or_never();
        rotated.expect("nothing to wait for").unwrap()
    }

    #[test]
    fn tokens_are_bound_to_pod_address_and_time() {
        let key = keys();
        let address: IpAddr = [10, 0, 0, 1].into();
        let token = key.issue("uid-1", address, 60, at(0));
        let good = |token: &str, uid, address, now| key.verify(token.as_bytes(), uid, address, now);
        assert!(good(&token, "uid-1", address, at(0)));
        assert!(good(&token, "uid-1", address, at(59)));
        assert!(!good(&token, "uid-1", address, at(60)));
        assert!(!good(&token, "uid-2", address, at(0)));
        assert!(!good(&token, "uid-1", [10, 0, 0, 2].into(), at(0)));
        assert!(!good(&token, "uid-1", "fd00::1".parse().unwrap(), at(0)));
        let other = keys();
        assert!(!other.verify(token.as_bytes(), "uid-1", address, at(0)));
        assert!(heir(&key).verify(token.as_bytes(), "uid-1", address, at(0)));
    }

    #[test]
    fn tokens_are_valid_for_at_least_their_ttl() {
        let key = keys();
        let address: IpAddr = [10, 0, 0, 1].into();
        for nanoseconds in [0, 1, 500_000_000, 999_999_999] {
            let issued = at(0) + jiff::SignedDuration::new(0, nanoseconds);
            for ttl in [1, 2, MAX_TTL_SECONDS] {
                let token = key.issue("uid-1", address, ttl, issued);
                let good = |after| key.verify(token.as_bytes(), "uid-1", address, issued + after);
                let ttl = jiff::SignedDuration::from_secs(ttl.into());
                assert!(good(ttl - jiff::SignedDuration::from_nanos(1)));
                assert!(!good(ttl + jiff::SignedDuration::from_secs(1)));
            }
        }
    }

    #[test]
    fn rotated_keys_stay_valid_until_their_last_token_expires() {
        let keys = keys();
        let address: IpAddr = [10, 0, 0, 1].into();
        let longest = i64::from(MAX_TTL_SECONDS);
        let issue = |second| keys.issue("uid", address, MAX_TTL_SECONDS, at(second));
        let mut stored = None;
        let mut rotate =
            |keys: &TokenKeys, second| rotate(keys, second, |ring| stored = Some(ring.to_bytes()));
        assert!(!rotate(&keys, KEY_LIFE - 1));
        let last = issue(KEY_LIFE - 1);
        assert!(rotate(&keys, KEY_LIFE) && !rotate(&keys, KEY_LIFE + 1));
        let next = issue(KEY_LIFE + longest);
        for keys in [&keys, &heir(&keys)] {
            let good =
                |token: &str, second| keys.verify(token.as_bytes(), "uid", address, at(second));
            assert!(good(&last, KEY_LIFE + longest - 2));
            assert!(!good(&last, KEY_LIFE + longest));
            assert!(good(&next, KEY_LIFE + 2 * longest - 1));
        }
        // Tokens made with the old key after the rotation are refused.
        let old = TokenKeys::new(KeyRing::of_key(
            keys.ring
                .load()
                .previous
                .as_ref()
                .unwrap()
                .key
                .bytes
                .clone(),
            at(0),
        ));
        let late = old.issue("uid", address, MAX_TTL_SECONDS, at(KEY_LIFE + longest));
        assert!(!keys.verify(late.as_bytes(), "uid", address, at(KEY_LIFE + longest + 1)));
        assert_eq!(stored, Some(keys.ring.load().to_bytes()));
    }

    #[test]
    fn keys_that_another_agent_has_are_left_as_they_are() {
        let keys = keys();
        // One handover that fails, and one that is confirmed.
        drop(keys.hand_over().now_or_never().unwrap());
        assert!(rotate(&keys, 2 * KEY_LIFE, |_| ()));
        // A clock that goes back a little changes nothing; a large step causes a new key.
        assert!(!rotate(&keys, 2 * KEY_LIFE - 60, |_| ()));
        assert!(rotate(&keys, 0, |_| ()));
        keys.hand_over().now_or_never().unwrap().confirm();
        let stored = |_: &KeyRing| panic!("stored");
        assert!(!rotate(&keys, 4 * KEY_LIFE, stored));
    }

    #[test]
    fn a_handover_during_a_rotation_has_the_new_key() {
        let keys = keys();
        let mut hand_over = Box::pin(keys.hand_over());
        let mut stored = None;
        // The other agent connects at the worst moment: the new key is stored, but not in use yet.
        let rotated = rotate(&keys, KEY_LIFE, |ring| {
            stored = Some(ring.to_bytes());
            assert!(hand_over.as_mut().now_or_never().is_none());
        });
        assert!(rotated);
        let handed = hand_over.now_or_never().unwrap();
        assert_eq!(Some(handed.ring().to_bytes()), stored);
    }

    #[test]
    fn a_rotation_during_a_handover_waits() {
        let keys = keys();
        for (confirmed, due) in [(false, KEY_LIFE), (true, 2 * KEY_LIFE)] {
            let handed = keys.hand_over().now_or_never().unwrap();
            let before = handed.ring().to_bytes();
            let mut rotated = Box::pin(keys.rotate(at(due), |_| ()));
            assert!(rotated.as_mut().now_or_never().is_none());
            assert_eq!(heir(&keys).ring.load().to_bytes(), before);
            if confirmed {
                handed.confirm();
            } else {
                drop(handed);
            }
            let changed = rotated.now_or_never().unwrap().unwrap();
            assert_eq!(changed, !confirmed);
        }
    }

    #[test]
    fn token_format_is_recognized() {
        let token = keys().issue("uid", [10, 0, 0, 1].into(), 60, at(0));
        assert!(TokenKeys::is_shaped(token.as_bytes()));
        for junk in [
            "",
            "INVALID",
            &token[1..],
            &format!("{token}A"),
            &format!("{token}="),
        ] {
            assert!(!TokenKeys::is_shaped(junk.as_bytes()), "{junk}");
        }
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let key = keys();
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
            let key = keys();
            prop_assert!(!key.verify(&junk, "uid-1", [10, 0, 0, 1].into(), at(0)));
        }
    }

    #[test]
    fn the_key_is_not_formatted() {
        let ring = KeyRing::of_key(Zeroizing::new([65; KEY_LENGTH]), at(0));
        assert_eq!(format!("{ring:?}"), "KeyRing(…)");
        let keys = format!("{:?}", TokenKeys::new(ring));
        assert!(!keys.contains("65") && !keys.contains("AAAA"), "{keys}");
    }
}
