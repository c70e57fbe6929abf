//! JSON Web Key Sets (RFC 7517), as the API server publishes them at `/openid/v1/jwks`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::json::{self, JsonError};
use crate::key::{Jwk, Key, KeyError};

/// Maximum size of a key set, in bytes. A key of RSA has about 500.
pub const MAX_KEY_SET_BYTES: usize = 256 << 10;
/// Maximum number of keys in a set. AWS STS limits a set to 100 keys of each type.
pub const MAX_KEYS: usize = 200;
/// Maximum length of a `kid`, in bytes. Kubernetes' own have 43, those of EKS 40.
pub const MAX_KEY_ID_BYTES: usize = 256;

/// The reason why a key set cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The text is too long.
    #[error("the key set has more than {MAX_KEY_SET_BYTES} bytes")]
    TooLong,
    /// The text is not the JSON of a key set.
    #[error("the key set is malformed: {0}")]
    Malformed(#[from] JsonError),
    /// The set has too many keys.
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooMany,
    /// The set has no usable key.
    #[error("the key set has no key that can verify a token")]
    Empty,
}

/// A key that is not used, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredKey {
    /// The `kid`, if the key has one of a valid length.
    pub id: Option<Box<str>>,
    /// The reason.
    pub why: KeyError,
}

/// The keys of a cluster. Each has its own `kid`.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
    ignored: Vec<IgnoredKey>,
}

impl KeySet {
    /// Parses a key set. Keys that it cannot use are ignored, as RFC 7517, section 5, recommends, so
    /// that a key of a new type does not disable the others.
    ///
    /// # Errors
    /// Returns [`KeySetError`] if no key remains, or the text is malformed or too long.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetError::TooLong);
        }
        let document: Document = json::parse(text)?;
        if document.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut set = Self::default();
        for value in document.keys {
            set.add(value);
        }
        if set.keys.is_empty() {
            return Err(KeySetError::Empty);
        }
        Ok(set)
    }

    /// Returns the key with a `kid`.
    pub fn find(&self, id: &str) -> Option<&Arc<Key>> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// Returns the keys in the order of the document.
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// Returns the keys that are not used.
    pub fn ignored(&self) -> &[IgnoredKey] {
        &self.ignored
    }

    fn add(&mut self, value: Value) {
        let Ok(jwk) = serde_json::from_value::<Jwk>(value) else {
            let why = KeyError::Malformed;
            self.ignored.push(IgnoredKey { id: None, why });
            return;
        };
        let id = jwk.kid.as_deref();
        let Some(id) = id.filter(|id| !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES) else {
            let why = KeyError::KeyId;
            self.ignored.push(IgnoredKey { id: None, why });
            return;
        };
        // None of several keys with an ID is used: the set does not say which one signs.
        let count = self.keys.len();
        self.keys.retain(|key| key.id() != id);
        let is_known =
            self.keys.len() < count || self.ignored.iter().any(|key| key.id.as_deref() == Some(id));
        let key = if is_known {
            Err(KeyError::DuplicateKeyId)
        } else {
            Key::from_jwk(id, &jwk)
        };
        match key {
            Ok(key) => self.keys.push(Arc::new(key)),
            Err(why) => {
                let id = Some(id.into());
                self.ignored.push(IgnoredKey { id, why });
            }
        }
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[cfg(test)]
mod tests;
