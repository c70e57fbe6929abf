//! Labels and annotations: small sorted maps that are made once and shared.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use crate::needs::Keys;

/// Most bytes of all keys and values of what administrators write.
const MOST: usize = 32 * 1024;
/// Most bytes of all labels of an object, or of all its annotations that rules may read. The API
/// server has no bound of its own but that of the whole object, and each process keeps what
/// thousands have.
const MOST_OF_OBJECT: usize = 8 * 1024;

/// An immutable map from text to text. Cheap to clone. Of more than 32 KiB, or 8 KiB of an object,
/// nothing is kept but that it was too much, see [`KeyValues::is_too_large`].
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValues {
    pairs: Pairs,
    too_large: bool,
    /// The keys that are here if they were there.
    known: Keys,
}

/// Keys with their values.
type Pairs = Arc<[(Arc<str>, Arc<str>)]>;

static NO_PAIRS: LazyLock<Pairs> = LazyLock::new(Arc::default);

impl Hash for KeyValues {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The known keys are nearly always the same, and many.
        self.pairs.hash(state);
        self.too_large.hash(state);
    }
}

impl Default for KeyValues {
    /// No pair, and no other was there.
    fn default() -> Self {
        Self {
            pairs: NO_PAIRS.clone(),
            too_large: false,
            known: Keys::All,
        }
    }
}

impl KeyValues {
    /// The labels or annotations of an object, of which those of `keys` are kept. All of them count
    /// for the bound.
    pub fn of_object<K, V>(pairs: impl IntoIterator<Item = (K, V)>, keys: &Keys) -> Self
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Self::bounded(pairs, keys, MOST_OF_OBJECT)
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
            pairs: match sorted.is_empty() {
                true => NO_PAIRS.clone(),
                false => sorted.into_iter().collect(),
            },
            too_large: false,
            known: keys.clone(),
        }
    }

    /// Returns whether the kept entries show for each of `keys` if it was there, and its value:
    /// rules that read other keys must not be evaluated.
    pub fn know(&self, keys: &Keys) -> bool {
        self.known.cover(keys)
    }

    /// Returns whether the kept entries show if `key` was there.
    pub fn knows(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.pairs.binary_search_by(|(known, _)| (**known).cmp(key));
        self.pairs.get(place.ok()?).map(|(_, value)| &**value)
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether it was more than is kept. Then nothing is known of it, and nothing may be allowed that
    /// depends on it: a selector may demand that a key is not there.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    /// These pairs with `others`, whose texts are shared; of pairs with one key the other's stays.
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

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for KeyValues {
    /// Of pairs with one key the last stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self::bounded(pairs, &Keys::All, MOST)
    }
}

impl fmt::Debug for KeyValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_key_stays_and_all_are_sorted() {
        let values: KeyValues = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
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
    fn of_too_much_nothing_is_kept() {
        let labels = |count| -> KeyValues {
            (0..count)
                .map(|number| (format!("{number:06}"), ""))
                .collect()
        };
        let most = labels(MOST / 6);
        assert!(!most.is_too_large() && most.get("000000").is_some());
        let more = labels(MOST / 6 + 1);
        assert!(more.is_too_large() && more.is_empty());
        assert_ne!(more, KeyValues::default());
    }
    #[test]
    fn of_an_object_what_is_read_is_kept_and_all_counts_for_the_bound() {
        let keys: Keys = ["team", "tier"].into_iter().collect();
        let labels = [("team", "shop"), ("app", "api"), ("x", "y")];
        let kept = KeyValues::of_object(labels, &keys);
        assert_eq!(kept.iter().collect::<Vec<_>>(), [("team", "shop")]);
        assert!(kept.know(&keys) && !kept.know(&Keys::All));
        assert!(kept.knows("tier") && !kept.knows("app"));
        // Not the same, though the same is here: another rule may be asked about it.
        let all = KeyValues::of_object([("team", "shop")], &Keys::All);
        assert!(kept != all && all.know(&keys) && all.know(&Keys::All));

        let long = "x".repeat(MOST_OF_OBJECT);
        for unread in [("app", &*long), ("a", &long[1..])] {
            let kept = KeyValues::of_object([unread], &keys);
            assert_eq!(
                kept.is_too_large(),
                unread.0.len() + unread.1.len() > MOST_OF_OBJECT
            );
            assert!(kept.is_empty());
        }
    }
}
