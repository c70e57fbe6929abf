//! Tokens of metadata version 2, without state: what a token is good for stands in the token,
//! authenticated by a key that only agents of this node hold.
//!
//! `base64url(expiry, 8 bytes · HMAC-SHA256(key, expiry · pod UID · address))`. A token is thus
//! worth nothing to another pod, also to one that gets the address later.
//!
//! Clients keep a token for as long as it was promised to be good. So a key is changed once a day,
//! and the one before it counts until the last of its tokens has ended; both outlive the process
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

/// Longest life that may be asked for, seconds; as in the real service.
pub const MAX_TTL_SECONDS: u32 = 21_600;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;

/// Bytes of a [`KeyRing`]: two keys, each with a time.
pub const RING_LENGTH: usize = 2 * (KEY_LENGTH + TIME);

/// Seconds for which a key signs new tokens. Longer than [`MAX_TTL_SECONDS`], so that at most one
/// earlier key is still valid.
const KEY_LIFE: i64 = 24 * 3600;
/// Seconds that the clock may go back before a key that seems to be from the future is changed.
const CLOCK_STEP: i64 = 3600;

const TIME: usize = 8;
const EXPIRY: usize = 8;
const TAG: usize = 32;

/// There is no randomness to make a key of.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes for the key of metadata tokens")]
pub struct NoRandomness;

/// A key that makes and checks tokens. Never formatted; wiped when dropped.
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

/// The key that makes tokens, and the one before it while its tokens may still be good. Never
/// formatted; wiped when dropped.
#[derive(Clone)]
pub struct KeyRing {
    current: Key,
    /// The time when `current` was made, in seconds.
    made: i64,
    previous: Option<Previous>,
}

#[derive(Clone)]
struct Previous {
    key: Key,
    /// The time when the last of its tokens expires, in seconds.
    until: i64,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRing(…)")
    }
}

impl KeyRing {
    /// A ring with one new key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate(now: Timestamp) -> Result<Self, NoRandomness> {
        Ok(Self {
            current: Key::generate()?,
            made: now.as_second(),
            previous: None,
        })
    }

    /// The ring of an agent that hands over only its current key.
    pub fn of_key(bytes: Zeroizing<[u8; KEY_LENGTH]>, now: Timestamp) -> Self {
        Self {
            current: Key::from_bytes(bytes),
            made: now.as_second(),
            previous: None,
        }
    }

    /// The ring as [`Self::to_bytes`] wrote it.
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

    /// The current key, its creation time, the previous key and its end; the latter two are zero if
    /// there is no previous key.
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

    /// The ring that follows, where this one's key has made tokens for long enough.
    ///
    /// # Errors
    /// [`NoRandomness`].
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
                // A token's end is rounded up to the second.
                until: now.saturating_add(i64::from(MAX_TTL_SECONDS) + 1),
            }),
        }))
    }
}

/// Makes and checks tokens.
#[derive(Debug)]
pub struct TokenKeys {
    ring: ArcSwap<KeyRing>,
    /// Locked while the ring is changed or handed over, so that an agent that takes it over has the
    /// newest one.
    keeper: Mutex<Keeper>,
}

/// The agent that changes the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    This,
    /// Another one, which has them too.
    Next,
}

/// A hand-over of the keys that goes on: they aren't changed until it ends. This agent goes on
/// changing them if it ends without [`confirm`](Self::confirm).
#[derive(Debug)]
pub struct HandOver<'a> {
    ring: Arc<KeyRing>,
    keeper: MutexGuard<'a, Keeper>,
}

impl HandOver<'_> {
    /// The keys to hand over.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Another agent has the keys now, and changes them from here on.
    pub fn confirm(mut self) {
        *self.keeper = Keeper::Next;
    }
}

impl TokenKeys {
    /// Tokens of this ring.
    pub fn new(ring: KeyRing) -> Self {
        Self {
            ring: ArcSwap::from_pointee(ring),
            keeper: Mutex::new(Keeper::This),
        }
    }

    /// Begins to hand the keys over, once a change that goes on is done.
    pub async fn hand_over(&self) -> HandOver<'_> {
        let keeper = self.keeper.lock().await;
        HandOver {
            ring: self.ring.load_full(),
            keeper,
        }
    }

    /// Changes the key where it is due, after `store` has had the new ring; true if it did. Waits
    /// for a hand-over that goes on.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub async fn rotate(
        &self,
        now: Timestamp,
        store: impl FnOnce(&KeyRing),
    ) -> Result<bool, NoRandomness> {
        let keeper = self.keeper.lock().await;
        if *keeper == Keeper::Next {
            return Ok(false);
        }
        let Some(ring) = self.ring.load().rotated(now)? else {
            return Ok(false);
        };
        // Stored before it makes any token, or a crash would leave tokens that no agent recognizes.
        store(&ring);
        self.ring.store(Arc::new(ring));
        Ok(true)
    }

    /// A token for the pod `uid` at `address`, good for `ttl_seconds` at the least.
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

    /// Whether `token` was issued to the pod `uid` at `address` and is not over. Takes the same
    /// time whatever is wrong with the tag.
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

    /// Returns whether `token` has the form of a token, for any pod and any key.
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
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn keys() -> TokenKeys {
        TokenKeys::new(KeyRing::generate(at(0)).unwrap())
    }

    /// The keys of another process that got them as bytes.
    fn heir(keys: &TokenKeys) -> TokenKeys {
        TokenKeys::new(KeyRing::from_bytes(&keys.ring.load().to_bytes()).unwrap())
    }

    /// Changes the keys, which nothing keeps from it.
    fn rotate(keys: &TokenKeys, second: i64, store: impl FnOnce(&KeyRing)) -> bool {
        let rotated = keys.rotate(at(second), store).now_or_never();
        rotated.expect("nothing to wait for").unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_pod_one_address_and_its_time() {
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
    fn a_token_is_never_good_for_less_than_was_promised() {
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
    fn a_key_that_was_changed_counts_until_the_last_of_its_tokens_has_ended() {
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
        // Tokens made with the old key after the change are refused.
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
        // One that breaks off, and one that is confirmed.
        drop(keys.hand_over().now_or_never().unwrap());
        assert!(rotate(&keys, 2 * KEY_LIFE, |_| ()));
        // A clock that goes back a little changes nothing; one that is far off causes a new key.
        assert!(!rotate(&keys, 2 * KEY_LIFE - 60, |_| ()));
        assert!(rotate(&keys, 0, |_| ()));
        keys.hand_over().now_or_never().unwrap().confirm();
        let stored = |_: &KeyRing| panic!("stored");
        assert!(!rotate(&keys, 4 * KEY_LIFE, stored));
    }

    #[test]
    fn a_hand_over_that_meets_a_change_has_the_new_key() {
        let keys = keys();
        let mut hand_over = Box::pin(keys.hand_over());
        let mut stored = None;
        // The other agent asks at the worst moment: the new key is stored, and not in use yet.
        let rotated = rotate(&keys, KEY_LIFE, |ring| {
            stored = Some(ring.to_bytes());
            assert!(hand_over.as_mut().now_or_never().is_none());
        });
        assert!(rotated);
        let handed = hand_over.now_or_never().unwrap();
        assert_eq!(Some(handed.ring().to_bytes()), stored);
    }

    #[test]
    fn a_change_that_meets_a_hand_over_waits_until_it_ends() {
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
    fn what_could_be_a_token_is_told_from_what_cannot() {
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
