//! Labels and annotations: small sorted maps that are made once and shared.

use std::fmt;
use std::sync::Arc;

/// An immutable map from text to text. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct KeyValues(Arc<[(Arc<str>, Arc<str>)]>);

impl KeyValues {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(known, _)| (**known).cmp(key));
        self.0.get(place.ok()?).map(|(_, value)| &**value)
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for KeyValues {
    /// Of pairs with one key the last stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut sorted = std::collections::BTreeMap::new();
        for (key, value) in pairs {
            sorted.insert(Arc::<str>::from(key.as_ref()), value.as_ref().into());
        }
        Self(sorted.into_iter().collect())
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
    }
}
