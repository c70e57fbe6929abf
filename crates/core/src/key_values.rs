//! Labels and annotations: small sorted maps that are made once and shared.

use std::fmt;
use std::sync::Arc;

/// Most bytes of all keys and values. The API server has no bound of its own but that of the whole
/// object, and each process keeps the labels of thousands.
const MOST: usize = 32 * 1024;

/// An immutable map from text to text. Cheap to clone. Of more than 32 KiB nothing is kept but that
/// it was too much, see [`KeyValues::is_too_large`].
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct KeyValues {
    pairs: Arc<[(Arc<str>, Arc<str>)]>,
    too_large: bool,
}

impl KeyValues {
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
        let mut sorted = std::collections::BTreeMap::new();
        let mut bytes = 0;
        for (key, value) in pairs {
            let (key, value) = (key.as_ref(), value.as_ref());
            bytes += key.len() + value.len();
            if bytes > MOST {
                return Self {
                    pairs: Arc::default(),
                    too_large: true,
                };
            }
            sorted.insert(Arc::<str>::from(key), value.into());
        }
        Self {
            pairs: sorted.into_iter().collect(),
            too_large: false,
        }
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
}
