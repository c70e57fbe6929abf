//! Labels and annotations: small, sorted, shared maps.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use crate::needs::Keys;

/// Maximum total size of keys and values that administrators write, in bytes.
const MAX_BYTES: usize = 32 * 1024;
/// Maximum total size of an object's labels, or of its annotations that rules may read, in bytes.
/// The API server bounds only the whole object, and each process stores those of thousands.
const MAX_OBJECT_BYTES: usize = 8 * 1024;

/// An immutable map of strings. Cloning is cheap. A map above 32 KiB, or 8 KiB for an object,
/// stores no pairs, only the fact that it is too large, see [`Labels::is_too_large`].
#[derive(Clone, PartialEq, Eq)]
pub struct Labels {
    pairs: Pairs,
    too_large: bool,
    /// The keys whose values were kept when the object was read. Such a key without a pair is
    /// absent from the object; all other keys may be present.
    known: Keys,
}

/// Keys and their values.
type Pairs = Arc<[(Arc<str>, Arc<str>)]>;

static NO_PAIRS: LazyLock<Pairs> = LazyLock::new(Arc::default);

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The known keys are omitted: they are many and nearly always the same.
        self.pairs.hash(state);
        self.too_large.hash(state);
    }
}

impl Default for Labels {
    /// Returns a map that is known to be empty.
    fn default() -> Self {
        Self {
            pairs: NO_PAIRS.clone(),
            too_large: false,
            known: Keys::All,
        }
    }
}

impl Labels {
    /// Creates the labels or annotations of an object and stores those in `keys`. All of them count
    /// toward the size limit.
    pub fn from_object<K, V>(pairs: impl IntoIterator<Item = (K, V)>, keys: &Keys) -> Self
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Self::bounded(pairs, keys, MAX_OBJECT_BYTES)
    }

    fn bounded<K, V>(pairs: impl IntoIterator<Item = (K, V)>, keys: &Keys, most: usize) -> Self
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let mut sorted = std::collections::BTreeMap::new();
        let mut bytes = 0;
        for (key, value) in pairs {
            let (key, value) = (key.as_ref(), value.as_ref());
            bytes += key.len() + value.len();
            if bytes > most {
                return Self {
                    too_large: true,
                    ..Self::default()
                };
            }
            if keys.contains(key) {
                sorted.insert(Arc::<str>::from(key), value.into());
            }
        }
        Self {
            pairs: if sorted.is_empty() {
                NO_PAIRS.clone()
            } else {
                sorted.into_iter().collect()
            },
            too_large: false,
            known: keys.clone(),
        }
    }

    /// Returns true if the stored pairs show the presence and value of each of `keys`. A rule that
    /// reads other keys must not be evaluated.
    pub fn cover(&self, keys: &Keys) -> bool {
        self.known.cover(keys)
    }

    /// Returns true if the stored pairs show the presence of `key`.
    pub fn cover_key(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.pairs.binary_search_by(|(known, _)| (**known).cmp(key));
        self.pairs.get(place.ok()?).map(|(_, value)| &**value)
    }

    /// Returns all pairs, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Returns true if the object's map exceeded the size limit, so its pairs were not stored.
    /// Callers must deny everything that depends on them, and must not treat the map as empty: a
    /// selector can require that a key is absent.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    /// Returns a map of these pairs and `others`, which take precedence. Strings are shared.
    #[must_use]
    pub fn with(&self, others: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut sorted: std::collections::BTreeMap<_, _> = self.pairs.iter().cloned().collect();
        sorted.extend(others);
        Self {
            pairs: sorted.into_iter().collect(),
            too_large: self.too_large,
            known: self.known.clone(),
        }
    }

    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns true if there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of pairs with the same key, the last one is kept.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self::bounded(pairs, &Keys::All, MAX_BYTES)
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_key_stays_and_all_are_sorted() {
        let values: Labels = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        assert_eq!(values.get("b"), Some("3"));
        assert_eq!(values.get("c"), None);
        assert_eq!(values.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
        let more = values.with([("b".into(), "4".into()), ("c".into(), "5".into())]);
        assert_eq!(
            more.iter().collect::<Vec<_>>(),
            [("a", "2"), ("b", "4"), ("c", "5")]
        );
    }

    #[test]
    fn oversized_labels_are_not_stored() {
        let labels = |count| -> Labels {
            (0..count)
                .map(|number| (format!("{number:06}"), ""))
                .collect()
        };
        let most = labels(MAX_BYTES / 6);
        assert!(!most.is_too_large() && most.get("000000").is_some());
        let more = labels(MAX_BYTES / 6 + 1);
        assert!(more.is_too_large() && more.is_empty());
        assert_ne!(more, Labels::default());
    }
    #[test]
    fn objects_keep_read_keys_and_count_all_toward_the_limit() {
        let keys: Keys = ["team", "tier"].into_iter().collect();
        let labels = [("team", "shop"), ("app", "api"), ("x", "y")];
        let kept = Labels::from_object(labels, &keys);
        assert_eq!(kept.iter().collect::<Vec<_>>(), [("team", "shop")]);
        assert!(kept.cover(&keys) && !kept.cover(&Keys::All));
        assert!(kept.cover_key("tier") && !kept.cover_key("app"));
        // Unequal despite equal pairs, since they may be read by different rules.
        let all = Labels::from_object([("team", "shop")], &Keys::All);
        assert!(kept != all && all.cover(&keys) && all.cover(&Keys::All));

        let long = "x".repeat(MAX_OBJECT_BYTES);
        for unread in [("app", &*long), ("a", &long[1..])] {
            let kept = Labels::from_object([unread], &keys);
            assert_eq!(
                kept.is_too_large(),
                unread.0.len() + unread.1.len() > MAX_OBJECT_BYTES
            );
            assert!(kept.is_empty());
        }
    }
}
